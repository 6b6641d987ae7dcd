"""Very small models of other packages, their inputs, and what two runs of them have to agree in."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

NAMES = ("vit_mae", "video_mae")


def package(name: str) -> Any:
    """The module, or a skip with the reason; a failure where DIFFMAVIL_REQUIRE names it (`make test-transformers`)."""
    if "torchaudio" not in sys.modules:
        try:
            import torchaudio  # noqa: F401
        except (ImportError, OSError):
            # PyPI's compiled torchaudio does not load beside a CPU-only torch, and transformers imports what it finds.
            sys.modules["torchaudio"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if name in os.environ.get("DIFFMAVIL_REQUIRE", "").split(","):
            pytest.fail(f"{name}: {error}")
        pytest.skip(f"{name} is not installed (make test-transformers installs it): {error}")


@dataclass
class Case:
    """A model as its package makes it, its config, and a batch for it with masks given."""

    name: str
    config: Callable[[], Any]
    make: Callable[..., Any]
    inputs: dict[str, Tensor]
    masked: int | None = None

    def __str__(self) -> str:
        return self.name


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 29,
    "image_size": 24,
    "patch_size": 4,
}


def vit_mae(batch: int = 3, **settings: Any) -> Case:
    transformers = package("transformers")
    settings = SIZES | {"norm_pix_loss": True, "mask_ratio": 0.6} | settings

    def config() -> Any:
        return transformers.ViTMAEConfig(**settings)

    def make() -> Any:
        torch.manual_seed(0)
        return scattered(transformers.ViTMAEForPreTraining(config()))

    generator = torch.Generator().manual_seed(1)
    size = settings["image_size"]
    pictures = torch.randn(batch, settings.get("num_channels", 3), size, size, generator=generator)
    noise = torch.rand(batch, (size // settings["patch_size"]) ** 2, generator=generator)
    return Case("vit_mae", config, make, {"pixel_values": pictures, "noise": noise})


def video_mae(batch: int = 3, **settings: Any) -> Case:
    transformers = package("transformers")
    settings = SIZES | {"num_frames": 4, "tubelet_size": 2} | settings

    def config() -> Any:
        return transformers.VideoMAEConfig(**settings)

    def make() -> Any:
        torch.manual_seed(0)
        return scattered(transformers.VideoMAEForPreTraining(config()))

    generator = torch.Generator().manual_seed(1)
    size, tokens, masked = settings["image_size"], 2 * (settings["image_size"] // settings["patch_size"]) ** 2, 50
    clips = torch.randn(batch, 4, settings.get("num_channels", 3), size, size, generator=generator)
    order = torch.rand(batch, tokens, generator=generator).argsort(dim=1)
    return Case("video_mae", config, make, {"pixel_values": clips, "bool_masked_pos": order < masked}, masked)


def make_case(name: str, **settings: Any) -> Case:
    return {"vit_mae": vit_mae, "video_mae": video_mae}[name](**settings)


def scattered(model: Any) -> Any:
    """Every parameter moved off its initial value, so that biases, class and mask tokens count."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def replica(model: Any) -> Any:
    """What `torch.nn.parallel.replicate` makes for DataParallel, which wants CUDA devices: here with other weights."""
    twins = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, twin in twins.items():
        for name, child in module.named_children():
            setattr(twin, name, twins[child])
        for name, parameter in module._parameters.items():
            setattr(twin, name, None if parameter is None else 1.5 * parameter)
    return twins[model]


def run(model: nn.Module, inputs: dict[str, Tensor], **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """The outputs, and the gradients of every parameter that has one."""
    model.zero_grad()
    outputs = model(**inputs, **options)
    outputs.loss.backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Outputs (or dictionaries of gradients) with the same keys, types and, relative to their size, numbers."""
    assert list(found) == list(expected)
    for name in expected:
        pairs = zip(flat(found[name]), flat(expected[name]), strict=True)
        for mine, theirs in pairs:
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
            size = theirs.float().abs().max().item() + 1e-3
            torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * size, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_bits(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for name in expected:
        for mine, theirs in zip(flat(found[name]), flat(expected[name]), strict=True):
            assert torch.equal(mine, theirs), name


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)
