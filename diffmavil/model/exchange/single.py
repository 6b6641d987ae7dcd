"""Sources with one modality: image MAEs, AudioMAE, VideoMAE; each becomes the one branch of a model."""

from __future__ import annotations

from dataclasses import replace

from diffmavil.config import DecoderConfig, DiffusionConfig, EncoderConfig, ModelConfig
from diffmavil.model.exchange.asked import flag
from diffmavil.model.exchange.encoders import read_decoder, read_encoder
from diffmavil.model.exchange.frames import audio_input, picture_input, video_input
from diffmavil.model.exchange.names import Names
from diffmavil.model.exchange.reader import Grids, Reader
from diffmavil.model.exchange.told import check_area, check_sizes

AUDIO_SET = (-4.2677393, 4.5689974)
"""Mean and deviation of AudioSet's log-mel, as AudioMAE gives them."""
_PICTURE_SECONDS = 1.0  # a picture has no length
_VIDEO_FRAMES, _VIDEO_SPACING = 16, 4 / 30  # VideoMAE: every fourth of 30 frames a second
_SPECTROGRAM = "time x mels: a file of one channel is read as AudioMAE's spectrograms"
_OTHER_KIND = "of a decoder of another kind than MAE's, or at another size"
_DECODERS = ("decoder", "mask_token", "dec_norms", "wfm", "encoder_to_decoder")


def from_picture(reader: Reader, names: Names) -> ModelConfig:
    """MAE, CrossMAE, ViTMAE: a video branch that sees one frame, and computes what the source does."""
    check_sizes(reader, names)
    rows = len(reader.table(names)) - 1
    video, grids = picture_input(reader, names, _PICTURE_SECONDS, rows)
    encoder = read_encoder(reader, "video.encoder", names, "picture", grids)
    return _alone(reader, names, grids, encoder, ModelConfig(modalities="video", video=video))


def from_sound(reader: Reader, names: Names) -> ModelConfig:
    """AudioMAE: an audio branch. Raises `ValueError` where config.json tells the size of another picture."""
    check_sizes(reader, names)
    rows = len(reader.table(names)) - 1
    audio, grids = audio_input(reader, names, rows, AUDIO_SET, halved=False, mel_first=False)
    check_area(reader, "image_size", grids.trained[0] * audio.patch[0], audio.mels, _SPECTROGRAM)
    encoder = read_encoder(reader, "audio.encoder", names, "time first", grids)
    return _alone(reader, names, grids, encoder, ModelConfig(modalities="audio", audio=audio))


def from_video(reader: Reader, names: Names) -> ModelConfig:
    """VideoMAE: a video branch without CLS."""
    check_sizes(reader, names)
    rows = len(reader.table(names)) if names.positions in reader.state else None
    video, grids = video_input(reader, names, _VIDEO_SPACING, _VIDEO_FRAMES, rows)
    encoder = read_encoder(reader, "video.encoder", names, "video", grids)
    reader.finish([(start, "of VideoMAE the encoder alone is taken") for start in _DECODERS])
    return as_others(ModelConfig(modalities="video", video=video, encoder=encoder))


def _alone(reader: Reader, names: Names, grids: Grids, encoder: EncoderConfig, config: ModelConfig) -> ModelConfig:
    """The model with the source's decoder, where it has one of MAE's kind."""
    decoder = read_decoder(reader, names, grids, encoder)
    reader.finish([] if decoder else [(start, _OTHER_KIND) for start in _DECODERS])
    config = replace(as_others(config), encoder=encoder)
    if decoder is None:
        return config
    return replace(config, norm_pix=_norm_pix(reader), **{f"{config.modalities}_decoder": decoder})


def _norm_pix(reader: Reader) -> bool:
    """As config.json tells, as asked, or as most are."""
    told, asked = reader.told.get("norm_pix_loss"), reader.ask("norm_pix")
    if isinstance(told, bool):
        if asked not in (None, told):
            raise reader.state.refusal(f"{flag('norm_pix')}={asked}: config.json beside it tells {told}")
        return told
    if asked is None:
        reader.report.assumed.append("a decoder of normalised patches (else --norm-pix False)")
    return asked is not False


def as_others(config: ModelConfig) -> ModelConfig:
    """None of the sources diffuses patches or has two views. Decoders are as small as may be: features need none."""
    small = DecoderConfig(depth=1, width=64, heads=2)
    diffusion = DiffusionConfig(corruption="mask_token")
    return replace(config, diffusion=diffusion, views=1, video_decoder=small, audio_decoder=small)
