"""Attention without a mask, for batches of equal-length sequences and for variable-length sequences packed end to end.

    out_i = sum_j softmax_j(<q_i, k_j> / sqrt(D)) v_j        over the keys j of the same sequence as the query i

Shapes: padded q [B, N, H, D], k and v [B, M, H, D]; packed q [T, H, D], k and v [U, H, D], where sequence s has the
queries cu_seqlens[s] .. cu_seqlens[s + 1], and likewise for the keys. In cross-attention the keys have their own
sequences.

Backends:

    sdpa       torch's scaled_dot_product_attention; packed: one call for each run of equal-length sequences
    math       matrix product, softmax, matrix product: stores the N x M weights for the backward pass
    flash      FlashAttention as shipped with torch, packed by torch.nn.attention.varlen; CUDA, half precision
    xformers   memory_efficient_attention, packed with a BlockDiagonalMask; CUDA, needs the package

For packed sequences on CUDA, `auto` tries flash, xformers (outside of graphs) and sdpa, in this order; for padded ones
it uses sdpa, which dispatches among torch's kernels. On a CPU it uses sdpa, but math in half precision while the
weights are small: there, torch's fused backward pass consists of small half-precision products and takes five to eight
times as long (measured on one core of a CPU with AVX512-BF16, D of 32 and 64, up to 218 queries; in float32 the two are
equally fast).

Cost of a sequence with N queries and M keys and s bytes per element: 4 N M H D FLOPs forward, and 2.5 times as many
backward (the weights are recomputed); reads and writes (2 N + 2 M) H D s. Compute-bound (matrix multiplication) from a
few hundred tokens on.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maekernels._checks import check, check_float, describe, refuse

Backend = Literal["auto", "sdpa", "math", "flash", "xformers"]
BACKENDS: tuple[Backend, ...] = ("auto", "sdpa", "math", "flash", "xformers")
_HALF = (torch.bfloat16, torch.float16)
_SMALL_WEIGHTS = 2**22
"""Weights of one sequence, over all heads, up to which `auto` stores them on a CPU: 8 MiB in half precision."""


class Segments(NamedTuple):
    """Bounds of packed sequences, on the device and on the host, so that the host never waits for the device."""

    cu_seqlens: Tensor
    """int32 [S + 1], from 0 to the number of tokens."""
    lengths: tuple[int, ...]
    """The S lengths, each at least 1."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str | None = None) -> Segments:
        """From lengths on the host, each at least 1 (else `ValueError`).

        The bounds are computed on the device, with one launch for each run of equal lengths: a copy from the host would
        wait for the device, and a CUDA graph cannot capture it.
        """
        check(min(lengths, default=1) > 0, "lengths", list(lengths), "at least 1 each")
        parts, first = [], 0
        for length, run in itertools.groupby(lengths):
            end = first + length * len(list(run))
            parts.append(torch.arange(first, end, length, dtype=torch.int32, device=device))
            first = end
        parts.append(torch.full((1,), first, dtype=torch.int32, device=device))
        return cls(torch.cat(parts), tuple(lengths))

    @property
    def longest(self) -> int:
        # Not max(..., default=0): torch.compile cannot trace that with symbolic lengths.
        return max(self.lengths) if self.lengths else 0


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Segments | Tensor | None = None,
    cu_seqlens_k: Segments | Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for every head. Differentiable.

    Args:
        q: queries, float [B, N, H, D]; packed [T, H, D]. Any strides.
        k, v: keys and values [B, M, H, D]; packed [U, H, D]; with the dtype and device of `q`.
        cu_seqlens: bounds of packed sequences as `Segments`, or int32 or int64 [S + 1], which is read on the host and
            so waits for the device on CUDA. None: padded.
        cu_seqlens_k: bounds of the keys; None: those of the queries.
        backend: any name other than 'auto' is used, or raises an error.

    Returns:
        The shape and dtype of `q`; under autocast, where torch's own attention computes it, the dtype of its output.

    Raises:
        ValueError: inconsistent shapes, or a backend that cannot compute this here.
    """
    bounds = _check(q, k, v, cu_seqlens, cu_seqlens_k, backend)
    if bounds is None:
        return _PADDED[_choose(backend, q, q.shape[1], k.shape[1], False)](q, k, v)
    queries, keys = bounds
    return _PACKED[_choose(backend, q, queries.longest, keys.longest, True)](q, k, v, queries, keys)


def _check(
    q: Tensor, k: Tensor, v: Tensor, cu: Segments | Tensor | None, cu_k: Segments | Tensor | None, backend: str
) -> tuple[Segments, Segments] | None:
    packed = cu is not None
    names = ("[T, H, D]", "[U, H, D]") if packed else ("[B, N, H, D]", "[B, M, H, D]")
    check_float("q", q, names[0])
    check_float("k", k, names[1])
    alike = k.shape[-2:] == q.shape[-2:] and k.dtype == q.dtype and k.device == q.device
    alike = alike and (packed or k.shape[0] == q.shape[0])
    if not alike:
        refuse("k", describe(k), f"{names[1]} with the batch, heads, width, type and device of q={describe(q)}")
    same = v.shape == k.shape and v.dtype == k.dtype and v.device == k.device
    if not same:
        refuse("v", describe(v), f"like k={describe(k)}")
    if backend not in BACKENDS:
        refuse("backend", repr(backend), f"one of {', '.join(BACKENDS)}")
    check(packed or cu_k is None, "cu_seqlens_k", cu_k, "None without cu_seqlens")
    if cu is None:
        return None
    queries = _segments("cu_seqlens", cu, q)
    keys = queries if cu_k is None else _segments("cu_seqlens_k", cu_k, k)
    check(cu_k is not None or len(k) == len(q), "k", describe(k), f"of {len(q)} tokens without cu_seqlens_k")
    pairs = len(keys.lengths) == len(queries.lengths)
    check(pairs, "cu_seqlens_k", f"{len(keys.lengths)} sequences", f"{len(queries.lengths)} as cu_seqlens")
    return queries, keys


def _segments(name: str, bounds: Segments | Tensor, tokens: Tensor) -> Segments:
    if not isinstance(bounds, Segments):
        ok = bounds.dim() == 1 and len(bounds) > 0 and bounds.dtype in (torch.int32, torch.int64)
        check(ok, name, describe(bounds), "int32 or int64 [S + 1]")
        steps = bounds.tolist()
        lengths = [after - before for before, after in itertools.pairwise(steps)]
        check(steps[0] == 0 and min(lengths, default=1) > 0, name, steps, "0 first and then rising")
        bounds = Segments(bounds.to(device=tokens.device, dtype=torch.int32).contiguous(), tuple(lengths))
    elif bounds.cu_seqlens.device != tokens.device:
        bounds = Segments.of(bounds.lengths, tokens.device)
    total = sum(bounds.lengths)
    check(total == len(tokens), name, f"{total} tokens", f"{len(tokens)}, as there are")
    return bounds


def _choose(backend: Backend, q: Tensor, queries: int, keys: int, packed: bool) -> str:
    """The backend for sequences of at most this many queries and keys."""
    if backend != "auto":
        problem = _problem(backend, q.device.type, q.device.index, q.dtype, q.shape[-1])
        check(problem is None, "backend", repr(backend), f"another here: {problem}")
        return backend
    if q.device.type == "cuda" and packed:
        # xformers copies its mask from the host on every call: that can be neither captured nor compiled.
        graphed = torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()
        for candidate in ("flash",) if graphed else ("flash", "xformers"):
            if _problem(candidate, q.device.type, q.device.index, q.dtype, q.shape[-1]) is None:
                return candidate
    small = q.shape[-2] * queries * keys <= _SMALL_WEIGHTS
    return "math" if q.device.type == "cpu" and q.dtype in _HALF and small else "sdpa"


_known: dict[tuple[object, ...], str | None] = {}


def _problem(backend: str, device: str, index: int | None, dtype: torch.dtype, dim: int) -> str | None:
    """Why `backend` cannot compute this; None if it can. Determined once for each case."""
    case = (backend, device, index, dtype, dim)
    if case not in _known:
        _known[case] = {"flash": _flash_problem, "xformers": _xformers_problem}.get(backend, _none)(
            device, index, dtype, dim
        )
    return _known[case]


# The effect of torch.compiler.assume_constant_result, which would import the compiler and triton with this module.
_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _none(device: str, index: int | None, dtype: torch.dtype, dim: int) -> None:
    return None


_WHOLE_FLASH = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities whose shared memory fits every backward pass; torch's own dispatch excludes the others too."""


def _flash_problem(device: str, index: int | None, dtype: torch.dtype, dim: int) -> str | None:
    if device != "cuda":
        return f"flash runs on CUDA, these tensors are on {device}"
    if dtype not in _HALF:
        return f"flash computes in bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return "flash needs compute capability 8.0"
    if 192 < dim <= 224 and capability not in _WHOLE_FLASH:
        return f"flash has no gradient for D from 193 to 224 with compute capability {'.'.join(map(str, capability))}"
    return None if dim % 8 == 0 and dim <= 256 else f"flash needs D a multiple of 8 up to 256, not {dim}"


def _xformers_problem(device: str, index: int | None, dtype: torch.dtype, dim: int) -> str | None:
    """Import it, and try one token forward and backward: its kernels depend on the wheel, the GPU, dtype and width."""
    if device != "cuda":
        return f"xformers runs on CUDA, these tensors are on {device}"
    try:
        importlib.import_module("xformers.ops")  # before any tensor is created
        # The result is cached for all later calls, whatever mode the first one runs in.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            token = torch.ones(1, 1, dim, dtype=dtype, device=f"{device}:{index or 0}", requires_grad=True)
            one = Segments.of([1], token.device)
            _xformers_packed(token, token, token, one, one).sum().backward()
    except ImportError as error:
        return f"xformers cannot be imported ({error}): pip install 'diffmavil[xformers]'"
    except (RuntimeError, ValueError) as error:
        return f"xformers has no kernel for it ({str(error).strip().partition(chr(10))[0]})"
    return None


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(q, k, v)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return importlib.import_module("xformers.ops").memory_efficient_attention(q, k, v)


def _flash_packed(q: Tensor, k: Tensor, v: Tensor, queries: Segments, keys: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if not queries.lengths:
        return torch.empty_like(q)
    q, k, v = map(_aligned, (q, k, v))
    out = varlen_attn(q, k, v, queries.cu_seqlens, keys.cu_seqlens, queries.longest, keys.longest)
    assert isinstance(out, Tensor)  # a tuple only if more outputs are requested
    return out


def _aligned(x: Tensor) -> Tensor:
    """Aligned as flash requires: it reads 16 bytes at a time, and does not check."""
    step = 16 // x.element_size()
    # The compiler cannot trace storage offsets; tensors that it allocates itself are aligned.
    begin = 0 if torch.compiler.is_compiling() else x.storage_offset()
    whole = x.stride(-1) == 1 and all(n % step == 0 for n in (begin, *x.stride()[:-1]))
    return x if whole else x.clone(memory_format=torch.contiguous_format)


def _xformers_packed(q: Tensor, k: Tensor, v: Tensor, queries: Segments, keys: Segments) -> Tensor:
    ops = importlib.import_module("xformers.ops")
    masks = importlib.import_module("xformers.ops.fmha.attn_bias")
    mask = masks.BlockDiagonalMask.from_seqlens(list(queries.lengths), list(keys.lengths), device=q.device)
    return ops.memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask)[0]


def _by_runs(padded: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Packed attention from a padded one: consecutive sequences of equal length form a batch."""

    def packed(q: Tensor, k: Tensor, v: Tensor, queries: Segments, keys: Segments) -> Tensor:
        parts, first_q, first_k = [], 0, 0
        for count, n, m in _runs(queries.lengths, keys.lengths):
            rows = q[first_q : first_q + count * n].unflatten(0, (count, n))
            columns = (x[first_k : first_k + count * m].unflatten(0, (count, m)) for x in (k, v))
            parts.append(padded(rows, *columns).flatten(0, 1))
            first_q, first_k = first_q + count * n, first_k + count * m
        return torch.cat(parts) if parts else torch.empty_like(q)

    return packed


def _runs(queries: Sequence[int], keys: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(count, queries, keys) of each run of consecutive sequences of equal size."""
    count = 0
    for i in range(len(queries)):
        count += 1
        last = i + 1 == len(queries)
        if last or (queries[i], keys[i]) != (queries[i + 1], keys[i + 1]):
            yield count, queries[i], keys[i]
            count = 0


_PADDED = {"sdpa": _sdpa, "math": _math, "flash": _flash, "xformers": _xformers}
_PACKED = {"sdpa": _by_runs(_sdpa), "math": _by_runs(_math), "flash": _flash_packed, "xformers": _xformers_packed}
