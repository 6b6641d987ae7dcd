"""A video branch of ours as a folder that transformers' ViTMAE or VideoMAE reads; the package is not needed for it.

The names are the older ones, which every version reads and `save_pretrained` writes to this day.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from diffmavil.config import ModelConfig
from diffmavil.model.embed import sequence_positions
from diffmavil.model.exchange.locate import CONFIG_JSON, PREPROCESSOR_JSON, WEIGHTS
from diffmavil.model.exchange.names import TRANSFORMERS_4, VIDEO_TRANSFORMERS_4, Names
from diffmavil.model.exchange.report import AS_IT_IS, Report, groups, span
from diffmavil.model.mavil import DiffMAViL

_OURS = "video"
_DECODER = {"decoder_embed": "context", "decoder_norm": "norm", "decoder_pred": "head"}
"""Of ViTMAE's decoder, theirs -> ours."""


@dataclass
class Writer:
    """Collects tensors under their names, and what was made of ours."""

    own: Mapping[str, Tensor]
    report: Report
    theirs: dict[str, Tensor] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def copy(self, theirs: str, ours: str, how: str = AS_IT_IS) -> None:
        """One parameter, or weight and bias of a layer."""
        names = [""] if ours in self.own else [".weight", ".bias"]
        for end in names:
            self.theirs[theirs + end] = self.take(ours + end)
        self.report.add(ours, theirs, how)

    def take(self, name: str) -> Tensor:
        self.taken.add(name)
        return self.own[name].detach().clone()

    def kernel(self, names: Names, layout: str, patch: tuple[int, ...]) -> None:
        """The patch embedding: a Linear of ours is a convolution of theirs. layout: of their kernel."""
        ours, sizes = f"{_OURS}.encoder.embed.proj", dict(zip("thw"[-len(patch) :], patch, strict=True))
        kernel = rearrange(self.take(f"{ours}.weight"), layout, **sizes)
        self.theirs |= {f"{names.patch}.weight": kernel, f"{names.patch}.bias": self.take(f"{ours}.bias")}
        self.report.add(ours, names.patch, f"reshaped to {list(kernel.shape)}")

    def table(self, theirs: str, ours: str) -> None:
        """Positions, which have a row for CLS there."""
        self.theirs[theirs] = F.pad(self.take(ours), (0, 0, 1, 0))[None]
        self.report.add(ours, theirs, "a row of zeros for CLS in front")

    def blocks(self, names: Names, ours: str, depth: int) -> None:
        """Queries, keys and values are parted; a bias of keys that VideoMAE has not is left out."""
        for number in range(depth):
            for part in names.parts:
                name = f"{ours}.{number}.{part}"
                weights = self.take(f"{name}.weight").chunk(len(names.parts[part]))
                self._put(names.keys(number, f"{part}.weight"), weights)
                keys = names.bias_keys(number, part)
                self._put(keys, self.take(f"{name}.bias").chunk(len(keys)))
        self.report.add(span(f"{ours}.{{}}", 0, depth), span(names.block, 0, depth), "queries, keys and values parted")

    def _put(self, keys: list[str] | list[str | None], values: tuple[Tensor, ...]) -> None:
        self.theirs |= {key: value.clone() for key, value in zip(keys, values, strict=True) if key is not None}


def write_transformers(model: DiffMAViL, folder: Path, *, decodes: bool = True) -> Report:
    """Write config.json, preprocessor_config.json and model.safetensors of the class that the video branch fits.

    decodes: False leaves the decoder out where it would fit too.

    Raises:
        ValueError: it fits neither, and why.
    """
    config = model.config
    problems = {"ViTMAE": vit_mae_problems(config), "VideoMAE": video_mae_problems(model)}
    kind = next((kind for kind, found in problems.items() if not found), None)
    if kind is None:
        said = "; ".join(f"{kind} needs {', '.join(found)}" for kind, found in problems.items())
        raise ValueError(f"--to transformers: neither of its classes computes what the video branch does: {said}")
    report = Report(f"{config.modalities} model of diffmavil, to transformers' {kind}")
    writer = Writer(dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers()), report)
    settings = _vit_mae(writer, config, decodes) if kind == "ViTMAE" else _video_mae(writer, config)
    report.left += groups(sorted(model.state_dict().keys() - writer.taken))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_JSON).write_text(json.dumps(settings, indent=2) + "\n")
    (folder / PREPROCESSOR_JSON).write_text(json.dumps(_pixels(config, kind), indent=2) + "\n")
    theirs = {name: value.float().cpu().contiguous() for name, value in writer.theirs.items()}
    save_file(theirs, folder / WEIGHTS, {"format": "pt"})
    return report


def vit_mae_problems(config: ModelConfig) -> list[str]:
    """What keeps the video branch from being a ViTMAE; nothing: it fits."""
    needs = _any_video(config)
    needs["model.video.frames=1 and a tubelet of 1"] = config.video.grid[0] == config.video.patch[0] == 1
    needs["model.encoder.cls=True"] = config.encoder.cls
    needs["model.encoder.final_norm=True"] = config.encoder.final_norm
    return [need for need, met in needs.items() if not met]


def video_mae_problems(model: DiffMAViL) -> list[str]:
    """What keeps the video branch from being a VideoMAE; nothing: it fits."""
    config = model.config
    needs = _any_video(config) | {"model.encoder.cls=False": not config.encoder.cls}
    if config.sees:
        table = model.video.encoder.embed.positions
        same = torch.equal(table.cpu(), sequence_positions(config.video.grid, config.encoder.width))
        needs["model.encoder.positions=sequence"] = same
    return [need for need, met in needs.items() if not met]


def _any_video(config: ModelConfig) -> dict[str, bool]:
    _, height, width = config.video.patch
    return {"a video branch": config.sees, "patches as high as wide": height == width}


def _common(config: ModelConfig) -> dict[str, Any]:
    encoder, video = config.encoder, config.video
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.norm_eps,
        "image_size": video.size,
        "patch_size": video.patch[1],
        "num_channels": 3,
        "qkv_bias": True,
        "norm_pix_loss": config.norm_pix,
        "torch_dtype": "float32",
    }


def _vit_mae(writer: Writer, config: ModelConfig, decodes: bool) -> dict[str, Any]:
    decodes = decodes and _decoder_fits(config)
    names = TRANSFORMERS_4.within("vit." if decodes else "")
    writer.kernel(names, "d (h w c) -> d c h w", config.video.patch[1:])
    writer.copy(names.cls, f"{_OURS}.encoder.embed.cls")
    writer.table(names.positions, f"{_OURS}.encoder.embed.positions")
    writer.blocks(names, f"{_OURS}.encoder.blocks", config.encoder.depth)
    writer.copy(names.norm, f"{_OURS}.encoder.norm")
    settings = {"model_type": "vit_mae", **_common(config), "mask_ratio": 0.75}
    if not decodes:
        return {**settings, "architectures": ["ViTMAEModel"]}
    decoder = config.video_decoder
    for theirs, ours in _DECODER.items():
        writer.copy(f"decoder.{theirs}", f"{_OURS}.decoder.{ours}")
    writer.theirs["decoder.mask_token"] = writer.take(f"{_OURS}.decoder.masked.token")[None, None]
    writer.report.add(f"{_OURS}.decoder.masked.token", "decoder.mask_token")
    writer.table("decoder.decoder_pos_embed", f"{_OURS}.decoder.positions")
    writer.blocks(replace(names, block="decoder.decoder_layers.{}"), f"{_OURS}.decoder.blocks", decoder.depth)
    return {
        **settings,
        "architectures": ["ViTMAEForPreTraining"],
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": int(decoder.width * decoder.mlp_ratio),
    }


def _video_mae(writer: Writer, config: ModelConfig) -> dict[str, Any]:
    """The encoder alone: VideoMAE's decoder has a last LayerNorm of another eps, and no bias below it."""
    names, encoder, depth = VIDEO_TRANSFORMERS_4, f"{_OURS}.encoder", config.encoder.depth
    writer.kernel(names, "d (t h w c) -> d c t h w", config.video.patch)
    writer.blocks(names, f"{encoder}.blocks", depth)
    if config.encoder.final_norm:
        writer.copy(names.norm, f"{encoder}.norm")
    keys = [writer.own[f"{encoder}.blocks.{number}.attn.qkv.bias"].chunk(3)[1] for number in range(depth)]
    if any(bias.any() for bias in keys):
        writer.report.left.append("the biases of keys: VideoMAE has none, and they change no attention")
    return {
        "model_type": "videomae",
        "architectures": ["VideoMAEModel"],
        **_common(config),
        "num_frames": config.video.frames,
        "tubelet_size": config.video.patch[0],
        "use_mean_pooling": not config.encoder.final_norm,
    }


def _decoder_fits(config: ModelConfig) -> bool:
    """Whether ViTMAE's decoder computes what ours does."""
    alike = config.video_decoder.attention == "self" and config.diffusion.corruption == "mask_token"
    fuses = config.hears and config.fusion_depth > 0
    return (
        alike and not fuses and config.target_width is None and config.video_decoder.norm_eps == config.encoder.norm_eps
    )


def _pixels(config: ModelConfig, kind: str) -> dict[str, Any]:
    """What makes transformers' input of pictures as ours is made."""
    video = config.video
    whole = {"height": video.size, "width": video.size}
    # VideoMAE's processor crops, to 224 x 224 if it is not told.
    scaled = {"size": whole} if kind == "ViTMAE" else {"size": {"shortest_edge": video.size}, "crop_size": whole}
    return {
        "image_processor_type": f"{'ViT' if kind == 'ViTMAE' else kind}ImageProcessor",
        "do_resize": True,
        **scaled,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(video.mean),
        "image_std": list(video.std),
    }
