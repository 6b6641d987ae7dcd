"""A classifier on a pretrained model: its encoders, fusion blocks, and a head over what they give.

As MAViL's released code fine-tunes: the head is a LayerNorm and a Linear layer over the mean tokens of both
modalities, without CLS, side by side; with one modality over that encoder's. In training, clips lose columns and rows
of patches of their spectrogram (AudioMAE, Huang et al. 2022), and blocks are left out at random (stochastic depth,
Huang et al. 2016). Everything random is a pure function of (seed, position in the stream of samples).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffmavil.config import HeadConfig, ModelConfig, require
from diffmavil.model.blocks import Blocks, SelfBlock, choose_kernels, layer_norm
from diffmavil.model.branch import Branch
from diffmavil.model.contrast import pool
from diffmavil.model.embed import all_ids
from diffmavil.model.fusion import Fusion
from diffmavil.model.mavil import AUDIO_STREAM, VIDEO_STREAM, check_inputs, initialise, share_blocks
from maekernels import random_mask
from maekernels.philox import fold_in, uniform

_PATHS = 36
"""Philox stream of stochastic depth; `diffmavil.data.augment` has those before it."""
_TIME, _MEL, _PICTURE = 16, 17, 18
"""Random streams folded out of the seed; those of `diffmavil.model.branch` are below."""
_HEAD_STD = 2e-5
"""Of the head's weights at the start, as AudioMAE's and MAE's: the first loss is that of knowing nothing."""


class ClassifierDraws(NamedTuple):
    """What is random in a forward pass; nothing for what is not there or not random."""

    ids: dict[str, Tensor]
    """Modality -> the patches that are seen, int32 `[B, 1, K]`."""
    scales: dict[str, Tensor]
    """"audio", "video" and "fusion" -> `[blocks, 2, B]`: 0 where a block is left out, else 1 / the share kept."""


class Classifier(nn.Module):
    """Clips to a score for each class. Modules are named as in `DiffMAViL`; decoders are not there.

    Args:
        config: of the pretrained model; `modalities` says what is heard and seen.
        head: `classes` and `labels` are known: not empty, not "auto".
    """

    audio: Branch
    video: Branch

    def __init__(self, config: ModelConfig, head: HeadConfig) -> None:
        super().__init__()
        require(len(head.classes) >= 2, "head.classes", head.classes, "at least two names")
        require(head.labels != "auto", "head.labels", head.labels, "one or several")
        self.config, self.head_config = config, head
        if config.hears:
            self.audio = Branch(AUDIO_STREAM, config.audio, config, decodes=False)
        if config.sees:
            self.video = Branch(VIDEO_STREAM, config.video, config, decodes=False)
        share_blocks(config, self.branches)
        fusion_depth = head.fusion_depth if len(self.branches) == 2 else 0
        self.fusion = Fusion(fusion_depth, config.encoder, types=config.fusion_types, norm=config.fusion_norm)
        self.norm = layer_norm(len(self.branches) * config.encoder.width)
        self.head = nn.Linear(len(self.branches) * config.encoder.width, len(head.classes))
        self.apply(initialise)
        nn.init.normal_(self.head.weight, std=_HEAD_STD)
        choose_kernels(self, config.attention, config.norm)
        self._freeze(head.blocks)

    @property
    def branches(self) -> dict[str, Branch]:
        """Those that there are, "audio" before "video"."""
        return {name: getattr(self, name) for name in ("audio", "video") if hasattr(self, name)}

    def _freeze(self, learning: int | None) -> None:
        """Only the top `learning` blocks of each encoder, and what lies above them, learn."""
        if learning is None:
            return
        depth = self.config.encoder.depth
        require(learning <= depth, "head.blocks", learning, f"at most {depth}, the depth of the encoders")
        for branch in self.branches.values():
            branch.encoder.embed.requires_grad_(False)
            for block in list(branch.encoder.blocks)[: depth - learning]:
                block.requires_grad_(False)
            branch.encoder.norm.requires_grad_(learning > 0)

    def forward(
        self,
        video: Tensor,
        spec: Tensor,
        heard: Tensor,
        targets: Tensor,
        *,
        seed: int,
        offset: int,
        weights: Tensor | None = None,
        draws: ClassifierDraws | None = None,
        coupled: None = None,
    ) -> tuple[Tensor]:
        """The training loss: fp32 scalar.

        Args:
            video, spec: as of `DiffMAViL.forward`.
            heard: int64 `[B]`, frames of the spectrogram before the sound's end; padding is not pooled.
            targets: float `[B, C]`, the share of each class; with single labels they sum to 1.
            weights: float `[C]`, how much each class weighs.
            draws: what `draw` gave; None: drawn here.
        """
        if draws is None:
            draws = self.draw(video, spec, seed=seed, offset=offset)
        logits = self._logits(video, spec, heard, draws)
        if self.head_config.labels == "one":
            return (F.cross_entropy(logits, targets, weights, label_smoothing=self.head_config.label_smoothing),)
        return (F.binary_cross_entropy_with_logits(logits, targets, weights),)

    def scores(self, video: Tensor, spec: Tensor, heard: Tensor) -> Tensor:
        """Probabilities `[B, C]` in float32 of whole clips: over the classes (one label), or of each (several)."""
        logits = self.logits(video, spec, heard)
        return logits.softmax(dim=1) if self.head_config.labels == "one" else logits.sigmoid()

    def logits(self, video: Tensor, spec: Tensor, heard: Tensor) -> Tensor:
        """What the head makes of whole clips: `[B, C]`."""
        return self._logits(video, spec, heard, self._whole(video))

    def features(self, video: Tensor, spec: Tensor, heard: Tensor) -> Tensor:
        """What the head reads of whole clips: `[B, D]`, D the width of all encoders together."""
        return self._features(video, spec, heard, self._whole(video))

    def _whole(self, video: Tensor) -> ClassifierDraws:
        ids = {name: all_ids(len(video), 1, branch.tokens, video.device) for name, branch in self.branches.items()}
        return ClassifierDraws(ids, {})

    def _logits(self, video: Tensor, spec: Tensor, heard: Tensor, draws: ClassifierDraws) -> Tensor:
        features = self._features(video, spec, heard, draws)
        # Of scores in bf16 many would be equal, and the order of the classes would decide.
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())

    def _features(self, video: Tensor, spec: Tensor, heard: Tensor, draws: ClassifierDraws) -> Tensor:
        check_inputs(self.config, video, spec)
        inputs = {"audio": spec, "video": video}
        tokens = {
            name: branch.encode(inputs[name], draws.ids[name], draws.scales.get(name))
            for name, branch in self.branches.items()
        }
        if len(tokens) == 2:
            fused = self.fusion(tokens["audio"], tokens["video"], draws.scales.get("fusion"))
            tokens = dict(zip(tokens, fused, strict=True))
        pooled = []
        for name, x in tokens.items():
            real = self.audio.reached(heard).gather(1, draws.ids[name][:, 0].long()) if name == "audio" else None
            pooled.append(pool(x, _some(real), cls=self.config.encoder.cls))
        return self.norm(torch.cat(pooled, dim=1))

    def kept(self, modality: str) -> int:
        """Patches of a modality that a training clip shows."""
        branch, head = self.branches[modality], self.head_config
        if modality == "video":
            return _keep(branch.tokens, head.mask_video)
        columns, rows = branch.grid
        return _keep(columns, head.mask_time) * _keep(rows, head.mask_mel)

    @torch.no_grad()
    def draw(self, video: Tensor, spec: Tensor, *, seed: int, offset: int, **others: object) -> ClassifierDraws:
        """Which patches the clips of a batch keep, and which blocks they pass."""
        clips, device, head = len(video), video.device, self.head_config
        ids = {}
        if "audio" in self.branches:
            columns, rows = self.audio.grid
            kept = (_chosen(clips, columns, head.mask_time, fold_in(seed, _TIME), offset, device),
                    _chosen(clips, rows, head.mask_mel, fold_in(seed, _MEL), offset, device))  # fmt: skip
            grid = rearrange(kept[0], "b t -> b t 1") * rows + rearrange(kept[1], "b m -> b 1 m")
            ids["audio"] = rearrange(grid, "b t m -> b 1 (t m)").contiguous()
        if "video" in self.branches:
            kept_patches = _chosen(clips, self.video.tokens, head.mask_video, fold_in(seed, _PICTURE), offset, device)
            ids["video"] = rearrange(kept_patches, "b k -> b 1 k").contiguous()
        return ClassifierDraws(ids, self._draw_scales(clips, seed, offset, device))

    def _draw_scales(self, clips: int, seed: int, offset: int, device: torch.device) -> dict[str, Tensor]:
        if not self.head_config.drop_path:
            return {}
        stacks: dict[str, Blocks] = {name: branch.encoder.blocks for name, branch in self.branches.items()}
        stacks |= {"fusion": self.fusion.blocks} if len(self.fusion.blocks) else {}
        scales = {}
        for i, (name, blocks) in enumerate(stacks.items()):
            depth = len(blocks)
            rates = torch.linspace(0, self.head_config.drop_path, depth, device=device)
            if name == "fusion":  # above the encoders, whose last blocks have the full rate already
                rates = rates.new_full((depth,), self.head_config.drop_path)
            elif self.head_config.blocks is not None:  # frozen blocks give what they give in evaluation
                rates[: depth - self.head_config.blocks] = 0
            samples = torch.arange(offset, offset + clips, device=device)
            u = rearrange(
                uniform(fold_in(seed, i), 2 * depth, samples=samples, stream=_PATHS), "b (d two) -> d two b", two=2
            )
            rates = rearrange(rates, "d -> d 1 1")
            scales[name] = (u >= rates) / (1 - rates)
        return scales


def _some(real: Tensor | None) -> Tensor | None:
    """Where none of the tokens kept is real, all are: a short clip may have lost every column of its sound."""
    return None if real is None else real | ~real.any(dim=1, keepdim=True)


def _keep(length: int, without: float) -> int:
    return max(1, length - round(without * length))


def _chosen(clips: int, length: int, without: float, seed: int, offset: int, device: torch.device) -> Tensor:
    """Of `length` the ones that are kept: int32 `[B, K]`, ascending, at least one."""
    keep = _keep(length, without)
    if keep == length:
        return torch.arange(length, dtype=torch.int32, device=device).expand(clips, length)
    return random_mask(clips, length, keep, seed=seed, offset=offset, device=device).ids_keep


def start_from(classifier: Classifier, state: Mapping[str, Tensor]) -> list[str]:
    """Fill encoders and fusion from the weights of a `DiffMAViL` or of another `Classifier`; lines that say what fits.

    Fusion blocks beyond those in the weights begin as the identity. The head begins anew.

    Raises:
        ValueError: a branch that the weights do not have, or shapes that differ.
    """
    own = classifier.state_dict()
    wanted = {name for name in own if not name.startswith(("norm.", "head."))}
    for modality in classifier.branches:
        here = any(name.startswith(f"{modality}.encoder.") for name in state)
        there = " and ".join(sorted({name.partition(".")[0] for name in state} & {"audio", "video"})) or "neither"
        require(here, "--task", classifier.config.modalities, f"among what the weights have: {there}")
    taken = {name: value for name, value in state.items() if name in wanted}
    if classifier.config.shared_encoder and len(classifier.branches) == 2:
        sound = {name: value for name, value in taken.items() if name.startswith("audio.encoder.blocks.")}
        same = all(value.equal(state.get(f"video{name.removeprefix('audio')}", value)) for name, value in sound.items())
        require(same, "model.shared_encoder", True, "--model.no-shared-encoder: the weights have two encoders")
    for name, value in taken.items():
        require(value.shape == own[name].shape, name, tuple(value.shape), f"{tuple(own[name].shape)} as of the model")
    classifier.load_state_dict(own | taken)
    fresh = sorted({int(name.split(".")[2]) for name in wanted - taken.keys() if name.startswith("fusion.blocks.")})
    for index in fresh:
        block = classifier.fusion.blocks[index]
        assert isinstance(block, SelfBlock)
        for linear in (block.attn.proj, block.mlp[2]):
            nn.init.zeros_(linear.get_parameter("weight"))
    left = sorted({".".join(name.split(".")[:2]) for name in state.keys() - taken.keys()})
    lines = [f"taken from the weights: {len(taken)} tensors; new: the head"]
    lines += [f"new, beginning as the identity: {len(fresh)} fusion blocks"] if fresh else []
    missing = sorted(name for name in wanted - taken.keys() if not name.startswith("fusion.blocks."))
    lines += [f"new: {', '.join(missing)}"] if missing else []
    return [*lines, *([f"left over: {', '.join(left)}"] if left else [])]
