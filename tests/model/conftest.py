"""A model small enough for one core, in all its variants."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from diffmavil.config import DiffusionConfig, ModelConfig
from diffmavil.config.model import ContrastConfig
from diffmavil.model import DiffMAViL
from tests.model.small import SMALL

Clips = tuple[torch.Tensor, torch.Tensor]

_CROSS = replace(SMALL.video_decoder, attention="cross")
_MIX = replace(_CROSS, reads="mix")
_DIFFUSED = replace(SMALL, diffusion=DiffusionConfig(corruption="diffusion"))

VARIANTS = {
    "mavil": SMALL,
    "diffusion-self": _DIFFUSED,
    "diffmavil": replace(_DIFFUSED, video_decoder=_CROSS),
    "mask-token-cross": replace(SMALL, video_decoder=_CROSS, audio_decoder=_CROSS),
    "fast": replace(_DIFFUSED, video_decoder=_CROSS, audio_decoder=_CROSS, decode_fraction=0.25),
    "one-of-two-views-decoded": replace(_DIFFUSED, video_decoder=_CROSS, decoded_views=1),
    "every-lever": replace(
        SMALL,
        video_decoder=_MIX,
        audio_decoder=_MIX,
        decode_fraction=0.25,
        decoded_views=1,
        shared_encoder=True,
        diffusion=DiffusionConfig("diffusion", first_step=10, draws="min_snr", exponent=0.8, token_share=0.25),
    ),
    "contrast-apart": replace(
        _DIFFUSED, video_decoder=_CROSS, decoded_views=1, contrast=ContrastConfig(mask_ratio=0.25)
    ),
    "one-view-no-fusion": replace(_DIFFUSED, video_decoder=_CROSS, fusion_depth=0, views=1),
}


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> ModelConfig:
    return VARIANTS[request.param]


@pytest.fixture
def variants() -> dict[str, ModelConfig]:
    return dict(VARIANTS)


@pytest.fixture
def build() -> Callable[[ModelConfig], DiffMAViL]:
    def make(config: ModelConfig) -> DiffMAViL:
        torch.manual_seed(0)
        model = DiffMAViL(config)
        for module in model.modules():
            # As after some training: at the start noise and timesteps change no loss.
            if isinstance(module, torch.nn.Linear) and not module.weight.any():
                torch.nn.init.xavier_uniform_(module.weight)
        return model

    return make


@pytest.fixture
def clips() -> Callable[[int], Clips]:
    """Smooth random clips: `batch -> (video uint8 [B, 4, 32, 32, 3], spec [B, 64, 32])`."""

    def make(batch: int) -> Clips:
        generator = torch.Generator().manual_seed(7)
        coarse = torch.rand(batch, 3, 2, 5, 5, generator=generator)
        video = torch.nn.functional.interpolate(coarse, (4, 32, 32), mode="trilinear").movedim(1, -1)
        spec = torch.nn.functional.interpolate(
            torch.randn(batch, 1, 9, 5, generator=generator), (64, 32), mode="bilinear"
        )
        return (255 * video).to(torch.uint8).contiguous(), spec[:, 0].contiguous()

    return make


@pytest.fixture
def textures() -> Callable[[int], Clips]:
    """Clips as `clips` makes them, but each repeats one patch: who has seen one patch of a clip can know the others."""

    def make(batch: int) -> Clips:
        generator = torch.Generator().manual_seed(7)
        tile = torch.randint(0, 256, (batch, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
        return tile.repeat(1, 2, 4, 4, 1), torch.randn(batch, 8, 8, generator=generator).repeat(1, 8, 4)

    return make
