"""Parts of other people's models to parameters of ours: values by name, and what to say of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from diffmavil.model.embed import position_table
from diffmavil.model.exchange.asked import Asked, flag
from diffmavil.model.exchange.names import Names
from diffmavil.model.exchange.report import AS_IT_IS, Report, groups, span
from diffmavil.model.exchange.state import Tensors
from diffmavil.model.exchange.tables import resize_table
from diffmavil.model.exchange.vit import ENDS, check_outside, hidden_of, take_block, whole_depth, without_bias

_WIDE = (1280, 1408)  # the published widths, of 16 heads, whose heads are not 64 wide: huge and VideoMAE V2's giant
_HEAD, _DECODER_HEAD = 64, 32
_KERNELS = {
    "picture": "d c h w -> d (h w c)",
    "video": "d c t h w -> d (t h w c)",
    "time first": "d c time mel -> d (time mel c)",
    "mel first": "d c mel time -> d (time mel c)",
}
"""How a kernel lies in a file -> how our patches lie: (t, h, w, c) and (time, mel)."""
Positions = Literal["sincos", "sequence", "stored"]


@dataclass(frozen=True)
class Grids:
    """Patches along each axis: of the source, and of our model."""

    trained: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass
class Reader:
    """Collects values for parameters and buffers of our model.

    Attributes:
        kinds: which table of positions each encoder needs, see `EncoderConfig.positions`.
    """

    state: Tensors
    report: Report
    asked: Asked
    told: dict[str, object] = field(default_factory=dict)
    """A config.json beside the file."""
    values: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, Positions] = field(default_factory=dict)
    needed: set[str] = field(default_factory=set)
    """Names of what was looked for in `asked`."""

    def ask(self, name: str) -> Any:
        """What the file's owner says, see `Asked`."""
        self.needed.add(name)
        return getattr(self.asked, name)

    def width(self, names: Names) -> int:
        return len(self.state.take(f"{names.patch}.bias"))

    def mlp_ratio(self, names: Names, width: int) -> float:
        return hidden_of(self.state, names) / width

    def heads(self, width: int) -> int:
        """Of the encoders: as config.json tells, as asked, or as published."""
        told, asked = self.told.get("num_attention_heads"), self.ask("heads")
        usual = 16 if width in _WIDE else width // _HEAD
        return self._counted("heads", width, told, asked, usual)

    def decoder_heads(self, width: int) -> int:
        told, asked = self.told.get("decoder_num_attention_heads"), self.ask("decoder_heads")
        return self._counted("decoder_heads", width, told, asked, width // _DECODER_HEAD)

    def _counted(self, name: str, width: int, told: object, asked: int | None, usual: int) -> int:
        if isinstance(told, int):
            if asked not in (None, told):
                raise self.state.refusal(f"{flag(name)}={asked}: config.json beside it tells {told}")
            return told
        heads = asked or max(1, usual)
        if width % heads:
            raise self.state.refusal(
                f"tells no number of heads, and {heads} do not divide its width {width}: {flag(name)}"
            )
        if asked is None:
            self.report.assumed.append(f"{name.replace('_', ' ')} {heads}")
        return heads

    def patches(self, ours: str, names: Names, layout: str, *, added: str | None = None) -> None:
        """The patch embedding. added: the key of a vector that the source adds to every patch, part of our bias."""
        kernel, bias = self.state.take(f"{names.patch}.weight"), self.state.take(f"{names.patch}.bias")
        how = f"reshaped from {list(kernel.shape)}"
        if layout == "mel first":
            how += ", time and mel swapped"
        if added is not None:
            bias = bias + self.state.take(added, (1, 1, len(bias))).flatten()
            how += f"; {added} added to the bias"
        self.values[f"{ours}.embed.proj.weight"] = rearrange(kernel, _KERNELS[layout]).contiguous()
        self.values[f"{ours}.embed.proj.bias"] = bias
        self.report.add(f"{ours}.embed.proj", names.patch, how)

    def cls(self, ours: str, names: Names, width: int) -> None:
        """The CLS token, to which its row of the table of positions is added for good."""
        cls, theirs, how = self.state.take(names.cls, (1, 1, width)), names.cls, AS_IT_IS
        row = self.table(names)[:1]
        if row.any():
            cls, theirs, how = cls + row, f"{names.cls}, {names.positions}", "its position added"
        self.values[f"{ours}.embed.cls"] = cls
        self.report.add(f"{ours}.embed.cls", theirs, how)

    def positions(self, ours: str, names: Names, grids: Grids, *, mel_first: bool = False) -> None:
        """The table; kept beside the weights unless it is the one that we make ourselves.

        mel_first: the source numbers all times of one mel band before the next band; its grid is (mel, time).
        """
        table, how = self.table(names)[1 if names.cls else 0 :], AS_IT_IS
        trained = grids.trained[::-1] if mel_first else grids.trained
        if len(table) != math.prod(trained):
            raise self.state.refusal(
                f"{names.positions} has {len(table)} positions, which do not fill a grid of "
                f"{' x '.join(map(str, trained))} patches"
            )
        if mel_first:
            table, how = rearrange(table, "(mel time) d -> (time mel) d", mel=trained[0]).contiguous(), "reordered"
        if grids.trained != grids.wanted:
            table = resize_table(table, grids.trained, grids.wanted)
            how = f"interpolated from {grids.trained} to {grids.wanted} patches"
        self._keep_table(ours, table, grids.wanted, names.positions, how)

    def sequence(self, ours: str, width: int, grids: Grids) -> None:
        """VideoMAE's table, which its files do not hold."""
        table, how = position_table("sequence", grids.trained, width), "made anew"
        if grids.trained != grids.wanted:
            table = resize_table(table, grids.trained, grids.wanted)
            how = f"made anew, interpolated from {grids.trained} to {grids.wanted} patches"
        self._keep_table(ours, table, grids.wanted, "VideoMAE's formula", how)

    def _keep_table(self, ours: str, table: Tensor, grid: tuple[int, ...], theirs: str, how: str) -> None:
        self.kinds[f"{ours}.embed"] = kind = _kind(table, grid)
        self.values[f"{ours}.embed.positions"] = table
        kept = "kept beside the weights" if kind == "stored" else f"the table of positions={kind}"
        self.report.add(f"{ours}.embed.positions", theirs, f"{how}; {kept}")

    def table(self, names: Names) -> Tensor:
        """Positions `[rows, D]`, a row for CLS in front where the source has one."""
        table = self.state.take(names.positions)
        if table.dim() != 3 or len(table) != 1:
            raise self.state.refusal(f"{names.positions} is {list(table.shape)}; must be [1, patches, width]")
        return table[0]

    def blocks(self, ours: str, *runs: tuple[Names, int]) -> None:
        """Blocks of an encoder or of the fusion: `(names, how many)` one after the other."""
        width = len(self.state.take(runs[0][0].keys(0, "norm1.weight")[0]))
        number = 0
        for names, count in runs:
            hidden = hidden_of(self.state, names)
            for theirs in range(count):
                block = take_block(self.state, names, theirs, width, hidden)
                self.values |= {f"{ours}.{number + theirs}.{name}": value for name, value in block.items()}
            self.report.add(span(f"{ours}.{{}}", number, number + count), span(names.block, 0, count), self._how(names))
            number += count

    def _how(self, names: Names) -> str:
        if without_bias(self.state, names):
            return "queries, keys and values have no bias: zeros"
        zero = "; keys have no bias: zeros" if None in names.bias_keys(0, "attn.qkv") else ""
        joined = "queries, keys and values joined" if len(names.parts["attn.qkv"]) > 1 else AS_IT_IS
        return joined + zero

    def norm(self, ours: str, theirs: str, width: int) -> bool:
        """The last LayerNorm; False: the file has none of this name."""
        if not theirs or f"{theirs}.weight" not in self.state:
            self.report.add(ours, "", "the source has none here")
            return False
        self.values |= {f"{ours}.{end}": self.state.take(f"{theirs}.{end}", (width,)) for end in ENDS}
        self.report.add(ours, theirs)
        return True

    def kind(self) -> Positions:
        """Which tables the encoders have: one of our kinds if it is that of all of them."""
        kinds = set(self.kinds.values())
        return kinds.pop() if len(kinds) == 1 else "stored"

    def eps(self, usual: float) -> float:
        """Of LayerNorm: as config.json tells, or as published."""
        told = self.told.get("layer_norm_eps")
        return float(told) if isinstance(told, int | float) else usual

    def depth(self, names: Names) -> int:
        return whole_depth(self.state, names)

    def finish(self, why: Sequence[tuple[str, str]] = ()) -> None:
        """Tell what is left over; `ValueError` if features depend on it.

        why: the beginning of a group's name, and the reason to tell.
        """
        check_outside(self.state)
        for group in groups(self.state.left):
            reason = next((reason for start, reason in why if group.startswith(start)), None)
            self.report.left.append(f"{group}: {reason}" if reason else group)
        unused = [flag(name) for name in self.asked.given if name not in self.needed | {"modalities"}]
        if unused:
            self.report.left.append(f"{', '.join(unused)}: not needed for this file")


def _kind(table: Tensor, grid: tuple[int, ...]) -> Positions:
    """Which of our tables it is, bit for bit; "stored": none."""
    width = table.shape[1]
    kinds: tuple[Positions, ...] = ("sincos", "sequence")
    for kind in kinds:
        if torch.equal(table, position_table(kind, grid, width)):
            return kind
    return "stored"
