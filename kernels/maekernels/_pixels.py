"""The input layout shared by the pixel ops (`patchify`, `diffuse_patches`, `masked_mse`).

Video, image and spectrogram are handled alike: a strided view [B, T, H, W, C] cut into patches (pt, ph, pw). An image
has T = 1; a spectrogram [B, F, M] has T = C = 1, H = F, W = M; channels-first is a permuted view. Token n is patch
(t, h, w) in row-major order; the P = pt*ph*pw*C elements of a patch are ordered (t, h, w, c), as in MAE and VideoMAE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from maekernels._checks import FLOATS, check, check_ids, check_kernel_dtype, describe, refuse
from maekernels._triton import Tile, jit, next_power_of_2, row_tile

if TYPE_CHECKING:
    import triton.language as tl

MAX_CHANNELS = 4
NormPix = bool | Literal["channel"]
"""Target normalisation: none, by the patch's own mean and deviation (MAE), or by those of each channel (VideoMAE)."""
PLAIN, PATCH, CHANNEL = 0, 1, 2
"""The same modes as the registered ops and the kernels take them."""
_CHUNK = 2**17


class Grid(NamedTuple):
    """Number of patches along (time, height, width), their size, and the number of channels."""

    t: int
    h: int
    w: int
    pt: int
    ph: int
    pw: int
    channels: int

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w

    @property
    def patch_dim(self) -> int:
        return self.pt * self.ph * self.pw * self.channels


def as_video(x: Tensor, patch: Sequence[int], channels_first: bool) -> tuple[Tensor, Grid]:
    """`x` as a view [B, T, H, W, C], and its grid. The shapes must have passed `check_pixels`."""
    if x.dim() == 3:
        video = x[:, None, :, :, None]
    elif x.dim() == 4:
        video = (x.movedim(1, 3) if channels_first else x)[:, None]
    else:
        video = x.movedim(1, 4) if channels_first else x
    pt, ph, pw = patch if len(patch) == 3 else (1, *patch)
    _, t, h, w, c = video.shape
    return video, Grid(t // pt, h // ph, w // pw, pt, ph, pw, c)


def check_pixels(
    x: Tensor,
    ids: Tensor,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    channels_first: bool,
    norm_pix: NormPix = False,
) -> Grid:
    """Check the arguments and return their grid; an invalid one raises `ValueError` naming it."""
    check(len(patch) in (2, 3) and all(p > 0 for p in patch), "patch", tuple(patch), "2 or 3 positive sizes")
    rank_ok = x.dim() == 5 if len(patch) == 3 else x.dim() in (3, 4)
    if not rank_ok or (x.dtype != torch.uint8 and x.dtype not in FLOATS):
        allowed = "[B, T, H, W, C] video" if len(patch) == 3 else "[B, H, W, C] image or [B, F, M] spectrogram"
        allowed = f"uint8 or float {allowed} for patch={tuple(patch)}, with channels_first the C before the sizes"
        refuse("x", describe(x), allowed)
    video, grid = as_video(x, patch, channels_first)
    sizes, c = video.shape[1:4], video.shape[4]
    divides = all(size % p == 0 for size, p in zip(sizes, (grid.pt, grid.ph, grid.pw), strict=True))
    if not divides:
        refuse("patch", tuple(patch), f"divisors of the sizes of x={describe(x)}")
    if not 1 <= c <= MAX_CHANNELS:
        refuse("x", describe(x), f"of 1 to {MAX_CHANNELS} channels ({channels_first=})")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != c:
            refuse(name, tuple(values), f"one value for each of the {c} channels of x={describe(x)}")
    check(all(s > 0 for s in std), "std", tuple(std), "positive")
    normed = grid.patch_dim // (c if norm_mode(norm_pix) == CHANNEL else 1)
    variance = normed > 1 or not norm_pix
    check(variance, "patch", tuple(patch), "of at least 2 elements with norm_pix, which divides by their deviation")
    check_ids(ids, x.shape[0], x.device)
    return grid


def norm_mode(norm_pix: NormPix) -> int:
    """PLAIN, PATCH or CHANNEL; `ValueError` for anything else."""
    check(norm_pix in (False, True, "channel"), "norm_pix", repr(norm_pix), "False, True or 'channel'")
    return CHANNEL if norm_pix == "channel" else int(norm_pix)


def scale_and_shift(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Scale and shift of each channel, for value = x * scale + shift; uint8 is scaled by 1/255 first."""
    unit = 255.0 if x.dtype == torch.uint8 else 1.0
    return [1.0 / (unit * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def gather_patches(
    x: Tensor, ids: Tensor, patch: Sequence[int], mean: Sequence[float], std: Sequence[float], channels_first: bool
) -> Tensor:
    """The selected patches, normalised, float32 (float64 for float64 input) [B, K, P], in plain torch.

    The patches are gathered from `x` as stored, before any arithmetic: pixels of other patches are not read.
    """
    video, g = as_video(x, patch, channels_first)
    chosen = _gather_rows(video, ids, g) if video.is_contiguous() else _gather_strided(video, ids, g)
    scale, shift = scale_and_shift(x, mean, std)
    values = chosen.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    repeat = g.patch_dim // g.channels
    return values.mul_(values.new_tensor(scale).repeat(repeat)).add_(values.new_tensor(shift).repeat(repeat))


def _gather_rows(video: Tensor, ids: Tensor, g: Grid) -> Tensor:
    """Gather whole patch rows (pw * C contiguous elements)."""
    batch, t, h, w = _token_index(ids, g)
    first = ((batch * g.t + t) * g.pt * g.h + h) * g.ph * g.w + w
    dt = torch.arange(g.pt, device=ids.device)[:, None] * (g.h * g.ph * g.w)
    dh = torch.arange(g.ph, device=ids.device) * g.w
    rows = (first[..., None] + (dt + dh).flatten()).flatten()
    return video.reshape(-1, g.pw * g.channels).index_select(0, rows).view(*ids.shape, g.patch_dim)


def _gather_strided(video: Tensor, ids: Tensor, g: Grid) -> Tensor:
    """Gather with any strides, without copying the whole input."""
    return _as_grid(video, g)[_token_index(ids, g)].flatten(2)


def scatter_patches(x: Tensor, values: Tensor, ids: Tensor, patch: Sequence[int], channels_first: bool) -> Tensor:
    """Overwrite the patches `ids` of `x` with `values` [B, K, P] of its dtype, and return `x`."""
    video, g = as_video(x, patch, channels_first)
    _as_grid(video, g)[_token_index(ids, g)] = values.unflatten(2, (g.pt, g.ph, g.pw, g.channels))
    return x


def _as_grid(video: Tensor, g: Grid) -> Tensor:
    """The view [B, t, h, w, pt, ph, pw, C]."""
    patches = video.unflatten(3, (g.w, g.pw)).unflatten(2, (g.h, g.ph)).unflatten(1, (g.t, g.pt))
    return patches.permute(0, 1, 3, 5, 2, 4, 6, 7)


def _token_index(ids: Tensor, g: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, token = torch.arange(ids.shape[0], device=ids.device)[:, None], ids.long()
    return batch, token // (g.h * g.w), token // g.w % g.h, token % g.w


def sample_chunks(batch: int, elements: int) -> Iterator[slice]:
    """Slices of the batch whose temporaries fit in a CPU's cache; `elements`: of one sample."""
    step = max(1, _CHUNK // max(1, elements))
    return (slice(b, min(b + step, batch)) for b in range(0, batch, step))


class Normalised(NamedTuple):
    """Patches of mean 0 and deviation 1, and the factors of their gradient, which broadcast against `values`."""

    values: Tensor
    rstd: Tensor
    """The factor of (v - mean)."""
    slope: Tensor
    """The factor of the gradient's component along the values: rstd for PATCH, 1 / sqrt(var) for CHANNEL."""


def normalise_patches(values: Tensor, mode: int, channels: int) -> Normalised:
    """(v - mean) / deviation of [B, K, P], var unbiased.

    PATCH: over the whole patch, with deviation sqrt(var + 1e-6). CHANNEL: over each channel, with sqrt(var) + 1e-6.
    """
    if mode == CHANNEL:
        values = values.unflatten(-1, (-1, channels)).mT
    centred = values - values.mean(-1, keepdim=True)
    variance = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).square() / (values.shape[-1] - 1)
    if mode == PATCH:
        rstd = (variance + 1e-6).rsqrt()
        return Normalised(centred * rstd, rstd, rstd)
    deviation = variance.sqrt()
    rstd = 1 / (deviation + 1e-6)
    slope = torch.where(deviation > 0, 1 / deviation, 0.0)
    # From [B, K, C, P / C] back to patch order.
    return Normalised(*(x.expand_as(values).mT.flatten(-2) for x in (centred * rstd, rstd, slope)))


def normalise_backward(grad: Tensor, normal: Normalised, mode: int, channels: int) -> Tensor:
    """The gradient with respect to the input of the normalisation, from that of its output, [B, K, P]."""
    apart = (lambda x: x.unflatten(-1, (-1, channels)).mT) if mode == CHANNEL else (lambda x: x)
    g, v, rstd, slope = apart(grad), *map(apart, normal)
    along = (g * v).sum(-1, keepdim=True) / (v.shape[-1] - 1)
    found = rstd * (g - g.mean(-1, keepdim=True)) - slope * v * along
    return found.mT.flatten(-2) if mode == CHANNEL else found


def pixel_args(
    x: Tensor, patch: Sequence[int], mean: Sequence[float], std: Sequence[float], channels_first: bool
) -> tuple[Grid, dict[str, Any]]:
    """The grid, and the kernel arguments that address and normalise the pixels of `x`.

    Any strides are allowed: they are passed in. Offsets within a patch are int32, those of samples and patches int64.
    """
    check_kernel_dtype("x", x)
    video, g = as_video(x, patch, channels_first)
    sb, st, sh, sw, sc = video.stride()
    span = (g.pt - 1) * st + (g.ph - 1) * sh + (g.pw - 1) * sw + (g.channels - 1) * sc
    check(span < 2**31, "x", f"strides {x.stride()}", "such that a patch spans fewer than 2^31 elements")
    scale, shift = scale_and_shift(x, mean, std)
    packed = sw == g.channels and (g.channels == 1 or sc == 1)
    strides = {"sb": sb, "st": st, "sh": sh, "sw": sw, "sc": sc}
    sizes = {"GT": g.t, "GH": g.h, "GW": g.w, "PT": g.pt, "PH": g.ph, "PW": g.pw, "C": g.channels, "PACKED": packed}
    return g, {"scale": tuple(scale), "shift": tuple(shift), **strides, **sizes}


def patch_tile(dim: int, whole: bool) -> Tile:
    """A tile of 2048 pixels: 16 for each of 128 threads, i.e. 16 bytes of uint8.

    Kernels that reduce over a patch need it `whole`: padded to a power of two, with more warps for larger patches.
    """
    if not whole:
        return row_tile(dim, 2048)
    chunk = next_power_of_2(dim)
    return Tile(max(1, 2048 // chunk), chunk, warps=min(16, max(4, chunk // 512)))


@jit
def patch_origin(batch, token, sb, st, sh, sw, GH: tl.constexpr, GW: tl.constexpr, PT, PH, PW):
    """int64 offset of the first pixel of each patch."""
    t = (token // (GH * GW)).to(tl.int64)
    h = (token // GW % GH).to(tl.int64)
    w = (token % GW).to(tl.int64)
    return batch.to(tl.int64) * sb + t * PT * st + h * PH * sh + w * PW * sw


@jit
def patch_offset(p, st, sh, sw, sc, PH: tl.constexpr, PW: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr):
    """int32 offset of element p = (t, h, w, c) from the first pixel of its patch; PACKED: w and c are contiguous."""
    line = p // (PW * C)
    along = p % (PW * C)
    offset = (line // PH) * st + (line % PH) * sh
    if PACKED:
        return offset + along
    return offset + (along // C) * sw + (along % C) * sc


@jit
def of_channel(values, p, C: tl.constexpr):
    """values[p % C], from a tuple of C numbers.

    Works on runs of 8 elements: the inner selection is the same for a whole run, which one thread holds, and the outer
    one is resolved at compile time, so that hardly any instructions per element remain.
    """
    run, step = p // 8, p % 8
    found = tl.zeros_like(p).to(tl.float32)
    for s in tl.static_range(C):
        first = values[0] + tl.zeros_like(p).to(tl.float32)
        for c in tl.static_range(1, C):
            first = tl.where((run * (8 % C) + s) % C == c, values[c], first)
        found = tl.where(step % C == s, first, found)
    return found


@jit
def load_patches(
    x_ptr, ids_ptr, row, rows, p, inside, K, scale, shift, sb, st, sh, sw, sc,
    GT: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    """Normalised elements `p` of the patches ids[row], float32 [ROWS, CHUNK], and their token indices [ROWS].

    An out-of-range id, which the CPU path refuses, is not read and yields NaN.
    EIGHTS: where possible, a thread takes 8 contiguous elements at a time, matching the noise, instead of 16.
    """
    token = tl.load(ids_ptr + row, mask=row < rows, other=0)
    known = ((token >= 0) & (token < GT * GH * GW))[:, None]
    origin = patch_origin(row // K, token, sb, st, sh, sw, GH, GW, PT, PH, PW)
    offset = origin[:, None] + patch_offset(p, st, sh, sw, sc, PH, PW, C, PACKED)[None, :]
    if EIGHTS and PACKED and PW * C % 8 == 0:
        offset = tl.max_contiguous(offset, [1, 8])
    if x_ptr.dtype.element_ty.is_floating():
        pixel = tl.load(x_ptr + offset, mask=inside & known, other=float("nan")).to(tl.float32)
    else:
        pixel = tl.load(x_ptr + offset, mask=inside & known, other=0).to(tl.float32)
        pixel = tl.where(known, pixel, float("nan"))
    return pixel * of_channel(scale, p, C)[None, :] + of_channel(shift, p, C)[None, :], token


@jit
def normalise_rows(v, inside, P: tl.constexpr):
    """Each row of the tile as (v - mean) / sqrt(var + 1e-6), 0 for elements outside; and 1 / sqrt(var + 1e-6)."""
    centred = tl.where(inside, v - (tl.sum(tl.where(inside, v, 0.0), axis=1) / P)[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / (P - 1)
    rstd = (1.0 / tl.sqrt(variance + 1e-6))[:, None]
    return centred * rstd, rstd


@jit
def normalise_channels(v, p, inside, P: tl.constexpr, C: tl.constexpr):
    """Each channel of each row of the tile as (v - mean) / (sqrt(var) + 1e-6), 0 for elements outside."""
    SIZE: tl.constexpr = P // C
    found = tl.zeros_like(v)
    for c in tl.static_range(C):
        mine = inside & (p % C == c)[None, :]
        centred = tl.where(mine, v - (tl.sum(tl.where(mine, v, 0.0), axis=1) / SIZE)[:, None], 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / (SIZE - 1))
        found += centred * (1.0 / (deviation + 1e-6))[:, None]
    return found


@jit
def normalise_channels_backward(grad, v, p, inside, P: tl.constexpr, C: tl.constexpr):
    """The gradient with respect to the tile `v`, the input of `normalise_channels`, from that of its output."""
    SIZE: tl.constexpr = P // C
    found = tl.zeros_like(v)
    for c in tl.static_range(C):
        mine = inside & (p % C == c)[None, :]
        centred = tl.where(mine, v - (tl.sum(tl.where(mine, v, 0.0), axis=1) / SIZE)[:, None], 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / (SIZE - 1))
        rstd = 1.0 / (deviation + 1e-6)
        slope = tl.where(deviation > 0, 1.0 / deviation, 0.0)
        value = centred * rstd[:, None]
        along = tl.sum(grad * value, axis=1) / (SIZE - 1) * slope
        mean = tl.sum(tl.where(mine, grad, 0.0), axis=1) / SIZE
        found += tl.where(mine, (grad - mean[:, None]) * rstd[:, None] - value * along[:, None], 0.0)
    return found
