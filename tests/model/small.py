"""A model small enough for one core."""

from diffmavil.config import AudioConfig, DecoderConfig, EncoderConfig, ModelConfig, VideoConfig

SMALL = ModelConfig(
    video=VideoConfig(frames=4, size=32, patch=(2, 8, 8)),
    audio=AudioConfig(frames=64, mels=32, patch=(8, 8)),
    encoder=EncoderConfig(depth=2, width=48, heads=3, mlp_ratio=2.0),
    fusion_depth=1,
    video_decoder=DecoderConfig(depth=1, width=32, heads=2, mlp_ratio=2.0),
    audio_decoder=DecoderConfig(depth=1, width=32, heads=2, mlp_ratio=2.0),
)
