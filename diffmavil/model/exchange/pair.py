"""Sources with sound and picture: MAViL's released weights, and CAV-MAE; whole, or one modality of them."""

from __future__ import annotations

from dataclasses import replace

from diffmavil.config import AudioConfig, EncoderConfig, Modalities, ModelConfig, VideoConfig
from diffmavil.config.model import hears, sees
from diffmavil.model.exchange import names as n
from diffmavil.model.exchange.encoders import read_encoder
from diffmavil.model.exchange.frames import audio_input, picture_input, video_input
from diffmavil.model.exchange.reader import Grids, Reader
from diffmavil.model.exchange.single import AUDIO_SET, as_others

_MAVIL_SPACING, _MAVIL_FRAMES = 0.5, 8
_CAV_MAE_SET = (-5.081, 4.4849)
"""Statistics of AudioSet's log-mel, as CAV-MAE gives them; it divides by one deviation."""
_CAV_MAE_SECONDS = 10.0  # one frame out of a clip of ten seconds
_CAV_MAE_EPS = 1e-5


def from_mavil(reader: Reader) -> ModelConfig:
    """MAViL as its inference code in av-superb reads it: no LayerNorm after encoders and fusion, no type embeddings."""
    modalities = reader.asked.modalities or "av"
    config = ModelConfig(modalities=modalities)
    if hears(modalities):
        names = n.MAVIL_AUDIO
        rows = len(reader.table(names)) - 1
        audio, grids = audio_input(reader, names, rows, AUDIO_SET, halved=False, mel_first=False)
        encoder = read_encoder(reader, "audio.encoder", names, "time first", grids)
        config = replace(config, audio=audio, encoder=encoder)
    if sees(modalities):
        names = n.MAVIL_VIDEO
        rows = len(reader.table(names)) - 1
        video, grids = video_input(reader, names, _MAVIL_SPACING, _MAVIL_FRAMES, rows)
        encoder = read_encoder(reader, "video.encoder", names, "video", grids)
        config = replace(config, video=video, encoder=_common(reader, config, encoder))
    depth = reader.depth(n.MAVIL_FUSION) if modalities == "av" else 0
    if depth:
        reader.blocks("fusion.blocks", (n.MAVIL_FUSION, depth))
    reader.finish([(start, "of a classifier on top") for start in ("fc_norm", "head")])
    return as_others(replace(config, fusion_depth=depth, fusion_types=False, fusion_norm=False))


def from_cav_mae(reader: Reader) -> ModelConfig:
    """CAV-MAE. Both modalities: its encoders, and its joint blocks as fusion. One alone: the joint blocks, with the
    LayerNorms that they have for it, are the last ones of its encoder, as where CAV-MAE contrasts and retrieves.
    """
    modalities = reader.asked.modalities or "av"
    config = ModelConfig(modalities=modalities)
    if hears(modalities):
        audio, grids = _cav_mae_sound(reader)
        encoder = _cav_mae_encoder(reader, "audio", "mel first", grids, modalities)
        config = replace(config, audio=audio, encoder=encoder)
    if sees(modalities):
        video, grids = _cav_mae_picture(reader)
        encoder = _cav_mae_encoder(reader, "video", "picture", grids, modalities)
        config = replace(config, video=video, encoder=_common(reader, config, encoder))
    norm, depth = False, reader.depth(n.CAV_MAE_FUSION)
    if modalities == "av" and depth:
        reader.blocks("fusion.blocks", (n.CAV_MAE_FUSION, depth))
        norm = reader.norm("fusion.norm", n.CAV_MAE_FUSION.norm, config.encoder.width)
    alone = "of one modality alone: --modalities"
    reader.finish([("blocks_u", alone), ("norm_", alone), ("decoder", "one decoder for both"), ("mask_token", "its")])
    return as_others(replace(config, fusion_depth=depth, fusion_types=False, fusion_norm=norm))


def _cav_mae_encoder(reader: Reader, modality: str, layout: str, grids: Grids, modalities: Modalities) -> EncoderConfig:
    one = modality[0]
    names = n.CAV_MAE[one]
    runs = [(names, reader.depth(names))]
    if modalities == "av":
        names = replace(names, norm="")
    else:
        runs.append((n.cav_mae_alone(one), reader.depth(n.CAV_MAE_FUSION)))
    ours, added = f"{modality}.encoder", f"modality_{one}"
    return read_encoder(reader, ours, names, layout, grids, runs=runs, added=added, eps=_CAV_MAE_EPS)


def _cav_mae_sound(reader: Reader) -> tuple[AudioConfig, Grids]:
    names = n.CAV_MAE["a"]
    return audio_input(reader, names, len(reader.table(names)), _CAV_MAE_SET, halved=True, mel_first=True)


def _cav_mae_picture(reader: Reader) -> tuple[VideoConfig, Grids]:
    names = n.CAV_MAE["v"]
    return picture_input(reader, names, _CAV_MAE_SECONDS, len(reader.table(names)))


def _common(reader: Reader, config: ModelConfig, video: EncoderConfig) -> EncoderConfig:
    """Our encoders have one size. Raises `ValueError` where those of the source differ."""
    if config.modalities == "av" and replace(config.encoder, positions=video.positions) != video:
        raise reader.state.refusal(f"its encoders differ: of sound {config.encoder}, of pictures {video}")
    return video
