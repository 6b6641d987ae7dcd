"""All of an encoder of another's, and MAE's decoder, to ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from diffmavil.config import DecoderConfig, EncoderConfig
from diffmavil.model.embed import sincos_positions
from diffmavil.model.exchange.names import Names
from diffmavil.model.exchange.reader import Grids, Reader
from diffmavil.model.exchange.vit import ENDS, block_keys, depth_of, hidden_of

EPS = 1e-6
"""Of every source but CAV-MAE and transformers, whose config.json tells."""
_DECODER_BLOCKS = ("decoder_blocks", "decoder_layers", "decoder_encoder.layer")
"""MAE's, transformers', and what transformers 5 makes of its own when it writes older names."""


def read_encoder(
    reader: Reader,
    ours: str,
    names: Names,
    layout: str,
    grids: Grids,
    *,
    runs: Sequence[tuple[Names, int]] = (),
    added: str | None = None,
    eps: float = EPS,
) -> EncoderConfig:
    """Embedding, blocks and last LayerNorm.

    Args:
        ours: "video.encoder" or "audio.encoder".
        layout, added: as of `Reader.patches`.
        runs: blocks under several names one after the other; default: all of `names`.
    """
    width = reader.width(names)
    runs = runs or [(names, reader.depth(names))]
    reader.patches(ours, names, layout, added=added)
    if names.cls:
        reader.cls(ours, names, width)
    if names.positions and names.positions in reader.state:
        reader.positions(ours, names, grids, mel_first=layout == "mel first")
    else:
        reader.sequence(ours, width, grids)
    reader.blocks(f"{ours}.blocks", *runs)
    final = reader.norm(f"{ours}.norm", names.norm, width)
    return EncoderConfig(
        depth=sum(count for _, count in runs),
        width=width,
        heads=reader.heads(width),
        mlp_ratio=reader.mlp_ratio(names, width),
        cls=bool(names.cls),
        positions=reader.kind(),
        final_norm=final,
        norm_eps=reader.eps(eps),
    )


def read_decoder(reader: Reader, names: Names, grids: Grids, encoder: EncoderConfig) -> DecoderConfig | None:
    """MAE's decoder; None, and nothing taken: the file has none, or one of another kind."""
    theirs = _decoder_names(reader, names)
    if theirs is None or grids.trained != grids.wanted:
        return None
    root, state = theirs.patch.removesuffix("decoder_embed"), reader.state
    ours = f"{'video' if len(grids.trained) == 3 else 'audio'}.decoder"
    table = state.look(theirs.positions)[0]
    if table[0].any():  # a position of the CLS token, which has none in our decoder
        return None
    state.take(theirs.positions)
    width, depth, patch = table.shape[1], depth_of(state, theirs), len(state.take(f"{root}decoder_pred.bias"))
    shapes = {"decoder_embed": (width, encoder.width), "decoder_norm": (width,), "decoder_pred": (patch, width)}
    for part, name in (("context", "decoder_embed"), ("norm", "decoder_norm"), ("head", "decoder_pred")):
        for end in ENDS:
            shape = shapes[name] if end == "weight" else shapes[name][:1]
            reader.values[f"{ours}.{part}.{end}"] = state.take(f"{root}{name}.{end}", shape)
        reader.report.add(f"{ours}.{part}", f"{root}{name}")
    reader.values[f"{ours}.masked.token"] = state.take(f"{root}mask_token", (1, 1, width)).flatten()
    reader.report.add(f"{ours}.masked.token", f"{root}mask_token")
    reader.values[f"{ours}.positions"] = table[1:]
    stored = not torch.equal(table[1:], sincos_positions(grids.wanted, width))
    reader.report.add(f"{ours}.positions", theirs.positions, "kept beside the weights" if stored else "our own table")
    reader.blocks(f"{ours}.blocks", (theirs, depth))
    return DecoderConfig(
        depth=depth,
        width=width,
        heads=reader.decoder_heads(width),
        mlp_ratio=hidden_of(state, theirs) / width,
        positions="stored" if stored else "sincos",
        norm_eps=reader.eps(EPS),
    )


def _decoder_names(reader: Reader, names: Names) -> Names | None:
    """Of a decoder as MAE has it; None: there is none, or one of another kind."""
    root = "decoder." if names.patch.endswith("projection") else ""
    theirs = replace(names, patch=f"{root}decoder_embed", cls="", positions=f"{root}decoder_pos_embed", norm="")
    kept = reader.state.named
    for blocks in _DECODER_BLOCKS:
        theirs = replace(theirs, block=f"{root}{blocks}.{{}}")
        if theirs.fit(kept) and reader.state.dim(theirs.positions) == 3:
            depth = depth_of(reader.state, theirs)
            known = {key for number in range(depth) for key in block_keys(theirs, number)}
            others = [key for key in kept if key.startswith(f"{root}{blocks}.") and key not in known]
            return None if others else theirs
    return None
