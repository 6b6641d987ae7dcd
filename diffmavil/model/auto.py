"""transformers' AutoConfig and AutoModel for folders of ours, without code from the Hub.

    from transformers import AutoModel
    from diffmavil.model.auto import register_auto_classes

    register_auto_classes()
    model = AutoModel.from_pretrained("owner/name")

Folders are those of `python -m diffmavil.convert RUN OUT --to safetensors` and `python -m diffmavil.hub push`.
Importing this module needs transformers.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffmavil.config import HeadConfig, ModelConfig
from diffmavil.config.files import section_from, section_to
from diffmavil.model.branch import Branch
from diffmavil.model.classifier import Classifier
from diffmavil.model.diffusion import alpha_bars, reached_by, timestep_frequencies
from diffmavil.model.embed import position_table, sincos_positions
from diffmavil.model.exchange.folder import MODEL_TYPE
from diffmavil.model.mavil import DiffMAViL

transformers: Any = importlib.import_module("transformers")  # not installed where types are checked


class DiffMAViLConfig(transformers.PretrainedConfig):
    """config.json of a folder of ours.

    Args:
        settings: `ModelConfig` as plain values; None: its defaults.
        head: `HeadConfig` likewise, of a classifier.
    """

    model_type = MODEL_TYPE

    def __init__(
        self, settings: dict[str, Any] | None = None, head: dict[str, Any] | None = None, **others: Any
    ) -> None:
        self.settings = settings if settings is not None else section_to(ModelConfig())
        self.head = head
        if head:
            told = section_from(HeadConfig, head)
            others["id2label"] = dict(enumerate(told.classes))
            others["label2id"] = {name: i for i, name in enumerate(told.classes)}
            others["problem_type"] = f"{'single' if told.labels == 'one' else 'multi'}_label_classification"
        super().__init__(**others)

    @property
    def model_config(self) -> ModelConfig:
        """Of a classifier's folder, with as many fusion blocks as its head has."""
        config = section_from(ModelConfig, self.settings)
        return replace(config, fusion_depth=section_from(HeadConfig, self.head).fusion_depth) if self.head else config


@dataclass
class DiffMAViLOutput(transformers.modeling_outputs.ModelOutput):
    """As `diffmavil.model.mavil.Features`; None for what the model has no branch for."""

    audio: Tensor | None = None
    video: Tensor | None = None
    fused: Tensor | None = None
    audio_tokens: Tensor | None = None
    video_tokens: Tensor | None = None


class _Wrapped(transformers.PreTrainedModel):
    config_class = DiffMAViLConfig
    base_model_prefix = "model"
    main_input_name = "video"

    @classmethod
    def from_pretrained(cls, *arguments: Any, **settings: Any) -> Any:
        """As of transformers, and the tables that no file holds are made anew: version 5 builds a model without memory
        before it reads its weights.
        """
        found = super().from_pretrained(*arguments, **settings)
        wrapped = found[0] if isinstance(found, tuple) else found
        for branch in wrapped.model.branches.values():
            _fill_tables(branch, wrapped.config.model_config)
        return found

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: parameters were initialised when the model was made."""

    def _inputs(self, video: Tensor | None, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both, an empty one for a modality that the model has no branch for."""
        one = video if video is not None else spec
        if one is None:
            raise ValueError("video, spec: both None; must be what the model sees or hears")
        video = one.new_empty(len(one), 0, 0, 0, 3) if video is None else video
        return video, one.new_empty(len(one), 0, 0) if spec is None else spec

    def _precision(self) -> AbstractContextManager[Any]:
        """Of a model that was read in half precision: what computes in it, since inputs and positions are float32."""
        half = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype) if half else nullcontext()


class DiffMAViLModel(_Wrapped):
    """Features of clips, nothing masked. `model` is the `DiffMAViL` itself, with its losses and decoders."""

    def __init__(self, config: DiffMAViLConfig) -> None:
        super().__init__(config)
        self.model = DiffMAViL(config.model_config)
        self.post_init()

    def forward(
        self, video: Tensor | None = None, spec: Tensor | None = None, heard: Tensor | None = None
    ) -> DiffMAViLOutput:
        """video `[B, T, H, W, 3]` uint8, or float in 0..1; spec `[B, F, M]` normalised log-mel; heard: int64 `[B]`."""
        with self._precision():
            features = self.model.features(*self._inputs(video, spec), heard)
        there = {name: value for name, value in features._asdict().items() if value.shape[-1]}
        return DiffMAViLOutput(**there)


class DiffMAViLForClassification(_Wrapped):
    """A fine-tuned classifier: probabilities of its classes."""

    def __init__(self, config: DiffMAViLConfig) -> None:
        super().__init__(config)
        head = section_from(HeadConfig, config.head or {})
        self.model = Classifier(config.model_config, head)
        self.classes = head.classes
        self.post_init()

    def forward(self, video: Tensor | None = None, spec: Tensor | None = None, heard: Tensor | None = None) -> Any:
        """As of `DiffMAViLModel`; heard None: no padding. `logits` `[B, classes]`: their softmax, or where a clip may
        have several labels their sigmoid, are the probabilities.
        """
        video, spec = self._inputs(video, spec)
        if heard is None:
            heard = torch.full((len(video),), spec.shape[1], device=video.device)
        with self._precision():
            logits = self.model.logits(video, spec, heard)
        return transformers.modeling_outputs.ImageClassifierOutput(logits=logits)


def register_auto_classes() -> None:
    """Make AutoConfig, AutoModel and the Auto classes for classification know `model_type` diffmavil; again and again
    changes nothing.
    """
    transformers.AutoConfig.register(MODEL_TYPE, DiffMAViLConfig, exist_ok=True)
    transformers.AutoModel.register(DiffMAViLConfig, DiffMAViLModel, exist_ok=True)
    for kind in (transformers.AutoModelForAudioClassification, transformers.AutoModelForVideoClassification):
        kind.register(DiffMAViLConfig, DiffMAViLForClassification, exist_ok=True)


@torch.no_grad()
def _fill_tables(branch: Branch, config: ModelConfig) -> None:
    """Positions and noise levels that follow from the settings."""
    embed = branch.encoder.embed
    if config.encoder.positions != "stored":
        embed.positions.copy_(position_table(config.encoder.positions, branch.grid, config.encoder.width))
    if not hasattr(branch, "decoder"):
        return
    decoder = config.video_decoder if len(branch.grid) == 3 else config.audio_decoder
    if decoder.positions != "stored":
        branch.decoder.positions.copy_(sincos_positions(branch.grid, decoder.width))
    if branch.diffused:
        branch.alpha_bar.copy_(alpha_bars(config.diffusion).float())
        if (reached := reached_by(config.diffusion)) is not None and branch.timesteps_reached is not None:
            branch.timesteps_reached.copy_(reached.float())
        branch.decoder.masked.get_submodule("time").get_buffer("frequencies").copy_(timestep_frequencies(decoder.width))
