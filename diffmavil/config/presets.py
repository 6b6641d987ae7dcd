"""The named configurations: MAViL and DiffMAViL in four sizes, variants beyond the papers, and their second stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diffmavil.config import (
    AudioConfig,
    AugmentConfig,
    BatchConfig,
    Config,
    ContrastConfig,
    DataConfig,
    DecoderConfig,
    DiffusionConfig,
    EncoderConfig,
    FinetuneConfig,
    HeadConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
    RatioSchedule,
    TeacherConfig,
    TrainConfig,
    VideoConfig,
    require,
)


def _diffused(model: ModelConfig) -> ModelConfig:
    """As in DiffMAViL: diffused patches, and a video decoder that cross-attends."""
    return replace(
        model,
        diffusion=replace(model.diffusion, corruption="diffusion"),
        video_decoder=replace(model.video_decoder, attention="cross"),
    )


def _fast(model: ModelConfig) -> ModelConfig:
    """Beyond the paper: both decoders cross-attend and a quarter of the masked patches is decoded."""
    audio_decoder = replace(model.audio_decoder, attention="cross")
    return replace(_diffused(model), audio_decoder=audio_decoder, decode_fraction=0.25)


def _lean(model: ModelConfig) -> ModelConfig:
    """MAViL's masks and mask tokens; both decoders cross-attend and half of the masked patches is decoded."""
    decoders = {name: replace(getattr(model, name), attention="cross") for name in ("video_decoder", "audio_decoder")}
    return replace(model, decode_fraction=0.5, **decoders)


_FALLING = RatioSchedule(kind="linear", start=0.9, end=0.8)
_CURRICULUM = MaskConfig(video=_FALLING, audio=_FALLING)
# A tenth of 104 audio tokens is too few to tell clips' audio apart: the contrast learns faster from twice as many.
_TINY_CURRICULUM = MaskConfig(video=_FALLING, audio=replace(_FALLING, start=0.8, end=0.7))
_TINY_FIXED = MaskConfig(audio=RatioSchedule(start=0.7, end=0.7))

# DiffMAViL's third technique. Keeping the work of a step constant is our choice, and so is the learning rate: we do
# not know how the paper sets either.
_ADAPTIVE = BatchConfig(rule="flops", lr_rule="sqrt")
_FIXED = BatchConfig()  # tiny sizes: three seeds learnt slightly less with an adaptive batch, benchmarks/LOG.md

_SIZES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        video=VideoConfig(frames=8, size=64, patch=(2, 8, 8)),
        audio=AudioConfig(frames=416, mels=64),
        encoder=EncoderConfig(depth=4, width=192, heads=3),
        video_decoder=DecoderConfig(depth=2, width=128, heads=4),
        audio_decoder=DecoderConfig(depth=2, width=128, heads=4),
        fusion_depth=1,
        # With the less noisy half too, an audio encoder learnt slightly less: benchmarks/LOG.md.
        diffusion=DiffusionConfig(corruption="mask_token", first_step=500),
        # For minutes of training, not weeks: one view costs half, and the contrast, which learns fastest, weighs more.
        contrast=ContrastConfig(inter_weight=1.0),
        views=1,
    ),
    "small": ModelConfig(
        encoder=EncoderConfig(width=384, heads=6),
        video_decoder=DecoderConfig(depth=4, width=256, heads=8),
        audio_decoder=DecoderConfig(depth=4, width=256, heads=8),
    ),
    "base": ModelConfig(),
    "large": ModelConfig(encoder=EncoderConfig(depth=24, width=1024, heads=16)),
}
STAGE_2 = "-stage2"
_OFTEN = 100  # steps, for tiny sizes: a run of minutes that is killed should not start from scratch
SIZES = tuple(_SIZES)
_VARIANTS: dict[str, Callable[[ModelConfig], ModelConfig]] = {"": _diffused, "-fast": _fast}


def _presets() -> dict[str, Config]:
    presets: dict[str, Config] = {}
    for size, model in _SIZES.items():
        fixed, falling = (_TINY_FIXED, _TINY_CURRICULUM) if size == "tiny" else (MaskConfig(), _CURRICULUM)
        train, optim, batch = _train(size), _optim(size), _FIXED if size == "tiny" else _ADAPTIVE
        presets[f"mavil-{size}"] = Config(model=model, mask=fixed, train=train, optim=optim)
        # Muon's iterations cost the same for any batch, a noticeable part of a step of the tiny sizes' 32 or 64 clips.
        # That its learning rate may be twice AdamW's was measured for the tiny sizes only.
        few = {"muon_steps": 3, "lr": 2 * optim.lr} if size == "tiny" else {}
        muon = replace(optim, name="muon", **few)
        presets[f"mavil-{size}-lean"] = Config(model=_lean(model), mask=fixed, train=train, optim=muon)
        for suffix, variant in _VARIANTS.items():
            presets[f"diffmavil-{size}{suffix}"] = Config(
                model=variant(model), mask=falling, batch=batch, train=train, optim=optim
            )
    return presets | {f"{name}{STAGE_2}": _second_stage(config) for name, config in presets.items()}


def _second_stage(config: Config) -> Config:
    """The same student, recipe and savings in stage 2. An averaged teacher follows faster in runs of few steps."""
    few = config.train.steps <= 1000
    return replace(config, teacher=TeacherConfig(stage=2, decay=(0.99, 0.999) if few else (0.999, 0.9999)))


def _train(size: str) -> TrainConfig:
    if size == "tiny":
        return TrainConfig(steps=1000, batch_size=32, checkpoint_every=_OFTEN)
    return TrainConfig(steps=75_000, batch_size=512, checkpoint_every=1000, log_every=20)


def _optim(size: str) -> OptimConfig:
    return OptimConfig(lr=1e-3) if size == "tiny" else OptimConfig(lr=2e-4)


def _finetune_presets() -> dict[str, FinetuneConfig]:
    """As in AudioMAE and MAViL where they state it; learning rates, run lengths and mixup are ours."""
    return {
        f"finetune-{size}": FinetuneConfig(
            model=model,
            data=DataConfig(augment=AugmentConfig(roll=True)),
            optim=OptimConfig(lr=1e-3 if size == "tiny" else 2e-4, betas=(0.9, 0.999), warmup=0.1, layer_decay=0.75),
            train=TrainConfig(batch_size=32, checkpoint_every=_OFTEN) if size == "tiny" else TrainConfig(batch_size=64),
            head=HeadConfig(fusion_depth=1 if size == "tiny" else 3, lr_video=1.0 if size == "tiny" else 0.5),
        )
        for size, model in _SIZES.items()
    }


PRESETS: dict[str, Config] = _presets()
FINETUNE_PRESETS: dict[str, FinetuneConfig] = _finetune_presets()
DEFAULT_PRESET = "diffmavil-tiny"


def finetune_preset_of(model: ModelConfig) -> str:
    """The fine-tuning preset whose encoders are nearest in width."""
    return min(FINETUNE_PRESETS, key=lambda name: abs(FINETUNE_PRESETS[name].model.encoder.width - model.encoder.width))


def preset(name: str) -> Config:
    """The named preset; `ValueError` lists the names."""
    require(name in PRESETS, "preset", name, f"one of {', '.join(PRESETS)}")
    return PRESETS[name]
