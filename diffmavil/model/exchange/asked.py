"""What a file of weights does not tell, and what its owner may say."""

from __future__ import annotations

from dataclasses import dataclass, fields

from diffmavil.config import Modalities, require

_COUNTS = ("heads", "size", "frames", "audio_frames", "mels", "trained_size", "trained_frames", "decoder_heads")


@dataclass(frozen=True)
class Asked:
    """None: as the file tells, else as its authors published it."""

    modalities: Modalities | None = None
    """Of a source with both: one of them alone. CAV-MAE's sound alone, say, passes the joint blocks by itself."""
    size: int | None = None
    """Height and width of the frames of our model; positions are interpolated where the source had another."""
    frames: int | None = None
    """Frames of our model, likewise."""
    audio_frames: int | None = None
    """Spectrogram frames of 10 ms of our model, likewise."""
    heads: int | None = None
    """Attention heads of the encoders. Default: heads 64 wide; of widths of 1280 and 1408, 16 heads."""
    decoder_heads: int | None = None
    """Attention heads of a decoder that the file has. Default: heads 32 wide."""
    trained_size: int | None = None
    """Height and width of the frames that the source saw in training. Default: 224."""
    trained_frames: int | None = None
    """Frames that the source saw in training. Default: VideoMAE's 16."""
    norm_pix: bool | None = None
    """Whether a decoder that the file has was trained on patches each normalised by its own mean and deviation.
    Default: it was; of MAE's published decoders those for pictures to look at (mae_visualize_*.pth) were not."""
    mels: int = 128
    """Mel bins of the source's spectrogram."""
    mean: float | None = None
    """Mean of the log-mel over the set that the source was trained on. Default: AudioSet's, as its authors give it."""
    std: float | None = None
    """Standard deviation, likewise; ours divides by two of them, as AudioMAE does, and CAV-MAE by one."""

    @property
    def given(self) -> list[str]:
        """Names of what was said."""
        return [one.name for one in fields(self) if getattr(self, one.name) != one.default]

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.name in _COUNTS:
                value = getattr(self, one.name)
                require(value is None or value > 0, flag(one.name), value, "positive")
        require((self.mean is None) == (self.std is None), "--mean, --std", (self.mean, self.std), "given together")
        require(self.std is None or self.std > 0, "--std", self.std, "positive")


def flag(name: str) -> str:
    """What a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"
