"""Symmetric InfoNCE between paired rows (van den Oord et al. 2018; CLIP), across all ranks.

    s_ij = <a_i / |a_i|, b_j / |b_j|> / temperature
    loss = 0.5 mean_i (logsumexp_j s_ij - s_ii) + 0.5 mean_i (logsumexp_j s_ji - s_ii)

Shapes: a, b [B, D]. When torch.distributed runs with W > 1 ranks, i iterates over the local rows and j over the
N = W B rows of all ranks: the mean of the losses over ranks is the loss of the whole batch, and gradients averaged over
ranks equal those of one process. With one rank, both directions share one matrix s.

The B x N matrix is not stored. Forward: each program multiplies a tile of rows by a tile of columns and stores the
tile's logsumexp of each row (and column), 1/64 of the matrix (and 1/64 or 1/128); a second kernel combines them.
Backward: the softmax weights are recomputed, for strips of rows of at most 2^22 elements (on a GPU of 512 rows, if that
is more), and multiplied by the rows. On a CPU, a matrix of at most one strip is stored: this is the reference, which
needs as much memory and two products fewer.

Cost of `contrast` for M rows against N, with o bytes per element:

    forward    2 M N D FLOPs
    backward   6 M N D FLOPs (the weights again, and their products with both sides)
    bytes      (M + N) D o read, and as many written in the backward pass; tiles are read again from the cache

W = 1: M = N = B, once; W > 1: M = B, N = W B, twice. Compute-bound (matrix multiplication) from about a thousand rows
on, bound by launch latency below that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from maekernels._checks import check, check_backend, check_float, check_kernel_dtype, describe, run_op
from maekernels._triton import cdiv, jit, next_power_of_2, register_cuda

if TYPE_CHECKING:
    import triton.language as tl

_STRIP = 2**22


def info_nce(a: Tensor, b: Tensor, temperature: float, *, backend: str | None = None) -> Tensor:
    """Contrast the rows of `a` and `b`, pair i against all others. Differentiable in both.

    Args:
        a, b: float [B, D], any norm, of one dtype (else both are promoted to the wider); the same B on every rank.
        temperature: a positive number. torch.compile treats it as a constant: another value recompiles.
        backend: for tests and benchmarks only: 'torch' or 'triton'.

    Returns:
        float32 scalar (float64 for float64 rows).

    Raises:
        NotImplementedError: rows with a forward-mode tangent.
    """
    check_float("a", a, "[B, D]")
    check_float("b", b, "[B, D]")
    check(a.shape == b.shape and a.device == b.device, "b", describe(b), f"in the shape and device of a={describe(a)}")
    check(a.shape[0] > 0 and a.shape[1] > 0, "a", describe(a), "at least one row and column")
    if isinstance(temperature, Tensor):
        check(
            False, "temperature", describe(temperature), "a positive number, not a tensor, which would get no gradient"
        )
    check(temperature > 0, "temperature", temperature, "positive")
    check_backend(backend, a.device, native=False)
    wide = torch.promote_types(a.dtype, b.dtype)
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    # One strip would be the whole matrix: recomputed in the backward pass it takes as much memory, and more time.
    kept = a.device.type == "cpu" and ranks * len(a) ** 2 <= _STRIP
    plain = backend == "torch" or kept
    unit, contrast = (_reference_unit, _reference_contrast) if plain else (_unit_rows, _contrast)
    a, b = run_op(unit, a.to(wide))[0], run_op(unit, b.to(wide))[0]
    if ranks == 1:
        return contrast(a, b, 0, temperature, True)[0]
    first = dist.get_rank() * len(a)
    a_to_b = contrast(a, all_rows(b), first, temperature, False)[0]
    return 0.5 * (a_to_b + contrast(b, all_rows(a), first, temperature, False)[0])


def all_rows(x: Tensor) -> Tensor:
    """The rows `[W B, ...]` of all W ranks' x `[B, ...]`, in rank order; differentiable. With one rank: `x` itself."""
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    return x if alone else _AllRows.apply(x)  # type: ignore[return-value]


class _AllRows(torch.autograd.Function):
    """The rows of every rank, in rank order; the gradient of a rank's rows is the sum over all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.new_empty((dist.get_world_size() * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous())
        ctx.rows = len(x)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Cloned, since it is reduced in place: autograd may pass the same tensor to another use of the rows.
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.rows
        return grad[first : first + ctx.rows]


def _reference_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of norm 1 in the dtype of `x`, and 1 / norm in float32 [B]. A row of zeros stays zero."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = 1 / torch.linalg.vector_norm(wide, dim=1).clamp_min(1e-12)
    return (wide * inverse[:, None]).to(x.dtype).contiguous(), inverse


def _reference_contrast(
    q: Tensor, k: Tensor, first: int, temperature: float, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of unit rows q [M, D] against k [N, D], where q_i is paired with k_{first + i}.

    both: the mean of rows against columns and columns against rows (M = N, first = 0). Returns the loss and the
    logsumexp of rows [M] and columns [N] (empty unless both).
    """
    s = _similarity(q, k, temperature)
    own = s.diagonal(first)
    rows, columns = s.logsumexp(1), s.logsumexp(0) if both else s.new_empty(0)
    loss = (rows - own).mean()
    if both:
        loss = 0.5 * (loss + (columns - own).mean())
    return loss, rows, columns


def _similarity(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    return _products(q.to(wide), k.to(wide)) / temperature


@torch.library.custom_op("maekernels::products", mutates_args=())
def _products(q: Tensor, k: Tensor) -> Tensor:
    """q @ k.T; an op, so that autocast affects neither it nor its gradient, which runs under the caller's autocast."""
    with torch.autocast(q.device.type, enabled=False):
        return q @ k.T


@_products.register_fake
def _(q, k):
    return q.new_empty((q.shape[0], k.shape[0]))  # len() would specialise on the sizes and recompile for each


def _setup_products(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_products(ctx, grad):
    q, k = ctx.saved_tensors
    with torch.autocast(grad.device.type, enabled=False):
        return grad @ k, grad.T @ q


_products.register_autograd(_backward_products, setup_context=_setup_products)


def _reference_weights(
    q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, start: int, first: int, temperature: float, both: bool
) -> Tensor:
    """d loss / d s times M, for the rows `q`, which start at row `start`: [rows of q, N] in the dtype of q."""
    s = _similarity(q, k, temperature)
    weights = (s - rows[:, None]).exp()
    if both:
        weights = 0.5 * (weights + (s - columns).exp())
    weights.diagonal(start + first).sub_(1)
    return weights.to(q.dtype)


@jit
def _unit_kernel(x_ptr, out_ptr, inverse_ptr, D, BLOCK: tl.constexpr):
    """Normalise one row."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros([BLOCK], tl.float32)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        square += x * x
    inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(square, axis=0)), 1e-12)
    tl.store(inverse_ptr + row, inverse)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * D + d, (x * inverse).to(out_ptr.dtype.element_ty), mask=d < D)


@jit
def _unit_backward_kernel(grad_ptr, unit_ptr, inverse_ptr, out_ptr, D, BLOCK: tl.constexpr):
    """One row: the component of the gradient orthogonal to the row, divided by the row's norm."""
    row = tl.program_id(0).to(tl.int64)
    dot = tl.zeros([BLOCK], tl.float32)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        dot += grad * tl.load(unit_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    along = tl.sum(dot, axis=0)
    inverse = tl.load(inverse_ptr + row)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        unit = tl.load(unit_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * D + d, ((grad - unit * along) * inverse).to(out_ptr.dtype.element_ty), mask=d < D)


@jit
def _tile(
    q_ptr, k_ptr, i, j, M, N, D, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr
):
    """<q_i, k_j> for a tile, float32 [ROWS, COLUMNS]."""
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    rows = i.to(tl.int64)[:, None] * D
    columns = j.to(tl.int64)[None, :] * D
    for d0 in range(0, D, STEP):
        d = d0 + tl.arange(0, STEP)
        q = tl.load(q_ptr + rows + d[None, :], mask=(i < M)[:, None] & (d < D)[None, :], other=0.0)
        k = tl.load(k_ptr + columns + d[:, None], mask=(j < N)[None, :] & (d < D)[:, None], other=0.0)
        products = tl.dot(q, k, products, input_precision=PRECISION)
    return products


@jit(do_not_specialize=("first",))
def _stats_kernel(
    q_ptr, k_ptr, own_ptr, rows_ptr, columns_ptr, M, N, D, first, per_temperature,
    BOTH: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of s: the logsumexp of each row to rows[tile column, M], and of each column to columns[tile row, N]."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    s = _tile(q_ptr, k_ptr, i, j, M, N, D, PRECISION, ROWS, COLUMNS, STEP) * per_temperature
    pair = (i + first)[:, None] == j[None, :]
    own = tl.sum(tl.where(pair, s, 0.0), axis=1)
    tl.store(own_ptr + i, own, mask=(i < M) & ((i + first) // COLUMNS == tl.program_id(1)))
    within = tl.where((j < N)[None, :], s, float("-inf"))
    top = tl.max(within, axis=1)
    total = tl.sum(tl.exp(within - top[:, None]), axis=1)
    tl.store(rows_ptr + tl.program_id(1).to(tl.int64) * M + i, top + tl.log(total), mask=i < M)
    if BOTH:
        within = tl.where((i < M)[:, None], s, float("-inf"))
        top = tl.max(within, axis=0)
        total = tl.sum(tl.exp(within - top[None, :]), axis=0)
        tl.store(columns_ptr + tl.program_id(0).to(tl.int64) * N + j, top + tl.log(total), mask=j < N)


@jit
def _join_kernel(partial_ptr, own_ptr, out_ptr, share_ptr, M, PARTS, factor, BLOCK: tl.constexpr):
    """The logsumexp over the PARTS of [PARTS, M], and the sum of factor * (logsumexp - own) over BLOCK rows."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(PARTS):
        value = tl.load(partial_ptr + tl.cast(part, tl.int64) * M + i, mask=i < M, other=0.0)
        above = tl.maximum(top, value)
        total = total * tl.exp(top - above) + tl.exp(value - above)
        top = above
    joined = top + tl.log(total)
    tl.store(out_ptr + i, joined, mask=i < M)
    own = tl.load(own_ptr + i, mask=i < M, other=0.0)
    tl.store(share_ptr + tl.program_id(0), tl.sum(tl.where(i < M, factor * (joined - own), 0.0), axis=0))


@jit(do_not_specialize=("start", "first"))
def _weights_kernel(
    q_ptr, k_ptr, rows_ptr, columns_ptr, out_ptr, M, N, D, start, first, per_temperature,
    BOTH: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of d loss / d s times the number of rows, for a strip of rows that starts at `start`."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    s = _tile(q_ptr, k_ptr, i, j, M, N, D, PRECISION, ROWS, COLUMNS, STEP) * per_temperature
    weights = tl.exp(s - tl.load(rows_ptr + i, mask=i < M, other=0.0)[:, None])
    if BOTH:
        weights = 0.5 * (weights + tl.exp(s - tl.load(columns_ptr + j, mask=j < N, other=0.0)[None, :]))
    weights -= ((i + start + first)[:, None] == j[None, :]).to(tl.float32)
    out = i.to(tl.int64)[:, None] * N + j[None, :]
    tl.store(out_ptr + out, weights.to(out_ptr.dtype.element_ty), mask=(i < M)[:, None] & (j < N)[None, :])


def _launch_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    check_kernel_dtype("a, b", x)
    x = x.contiguous()
    out, inverse = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)
    _unit_kernel[(len(x),)](x, out, inverse, x.shape[1], BLOCK=min(1024, next_power_of_2(x.shape[1])))
    return out, inverse


def _launch_unit_backward(grad: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    grad, out = grad.contiguous(), torch.empty_like(unit)
    block = min(1024, next_power_of_2(unit.shape[1]))
    _unit_backward_kernel[(len(unit),)](grad, unit, inverse, out, unit.shape[1], BLOCK=block)
    return out


class _Tiling(NamedTuple):
    rows: int
    columns: int
    meta: dict[str, Any]

    def grid(self, m: int, n: int) -> tuple[int, int]:
        return cdiv(m, self.rows), cdiv(n, self.columns)


def _tiling(q: Tensor, k: Tensor) -> _Tiling:
    """Tiles of 128 x 64 where they fill a GPU, else of 64 x 64; float32 as three tf32 products, for precision."""
    half = q.element_size() == 2
    rows, columns = 128 if half and len(q) >= 128 and len(q) * len(k) >= 1024 * 1024 else 64, 64
    meta = {"PRECISION": "ieee" if half else "tf32x3", "ROWS": rows, "COLUMNS": columns, "STEP": 64 if half else 32}
    # Eight warps for the smaller 16-bit tile: with four, ptxas sometimes targets 80 registers for sm_100 and spills.
    return _Tiling(rows, columns, {**meta, "num_warps": 8 if half and rows == 64 else 4})


def _launch_contrast(q: Tensor, k: Tensor, first: int, temperature: float, both: bool) -> tuple[Tensor, Tensor, Tensor]:
    q, k = q.contiguous(), k.contiguous()
    (m, dim), n = q.shape, len(k)
    tiling = _tiling(q, k)
    tiles = tiling.grid(m, n)
    own, rows, columns = (q.new_empty(size, dtype=torch.float32) for size in (m, m, n if both else 0))
    row_parts = q.new_empty((tiles[1], m), dtype=torch.float32)
    column_parts = q.new_empty((tiles[0], len(columns)), dtype=torch.float32)
    _stats_kernel[tiles](
        q, k, own, row_parts, column_parts, m, n, dim, first, 1 / temperature, BOTH=both, **tiling.meta
    )
    programs = cdiv(m, 128)
    shares = q.new_empty((1 + both, programs), dtype=torch.float32)
    factor = (0.5 if both else 1.0) / m
    _join_kernel[(programs,)](row_parts, own, rows, shares[0], m, tiles[1], factor, BLOCK=128)
    if both:
        _join_kernel[(programs,)](column_parts, own, columns, shares[1], n, tiles[0], factor, BLOCK=128)
    return shares.sum(), rows, columns


def _launch_weights(
    q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, start: int, first: int, temperature: float, both: bool
) -> Tensor:
    (m, dim), n = q.shape, len(k)
    tiling = _tiling(q, k)
    out = q.new_empty((m, n))
    _weights_kernel[tiling.grid(m, n)](
        q, k, rows, columns, out, m, n, dim, start, first, 1 / temperature, BOTH=both, **tiling.meta
    )
    return out


def _backward_in_strips(
    weights_of: Any,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    rows: Tensor,
    columns: Tensor,
    first: int,
    temperature: float,
    both: bool,
) -> tuple[Tensor, Tensor]:
    """d loss / d q and d loss / d k, from the weights of one strip of rows at a time."""
    q, k = q.contiguous(), k.contiguous()
    wide = torch.promote_types(q.dtype, torch.float32)
    factor = grad.to(wide) / (len(q) * temperature)
    grad_q, grad_k = torch.empty_like(q), torch.zeros_like(k, dtype=wide)
    # Each strip reads and writes all of grad_k: on a GPU it has at least enough rows for the products to dominate.
    step = max(512 if q.is_cuda else 1, _STRIP // len(k))
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, len(q), step):
            strip = slice(start, start + step)
            weights = weights_of(q[strip], k, rows[strip], columns, start, first, temperature, both)
            # On CUDA, a 0-d factor would be rounded to half precision, where it may overflow to infinity.
            grad_q[strip] = (weights @ k).to(wide) * factor
            grad_k += weights.T @ q[strip]
    return grad_q, (grad_k * factor).to(k.dtype)


def _launch_contrast_backward(*args: Any) -> tuple[Tensor, Tensor]:
    return _backward_in_strips(_launch_weights, *args)


@torch.library.custom_op("maekernels::unit_rows", mutates_args=(), device_types="cpu")
def _unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return _reference_unit(x)


@_unit_rows.register_fake
def _(x):
    inverse = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x, memory_format=torch.contiguous_format), inverse


@torch.library.custom_op("maekernels::unit_rows_backward", mutates_args=(), device_types="cpu")
def _unit_rows_backward(grad: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    wide = unit.to(inverse.dtype)
    along = (grad * wide).sum(1, keepdim=True)
    return ((grad - wide * along) * inverse[:, None]).to(unit.dtype).contiguous()


@_unit_rows_backward.register_fake
def _(grad, unit, inverse):
    return torch.empty_like(unit, memory_format=torch.contiguous_format)


@torch.library.custom_op("maekernels::contrast", mutates_args=(), device_types="cpu")
def _contrast(q: Tensor, k: Tensor, first: int, temperature: float, both: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _reference_contrast(q, k, first, temperature, both)


@_contrast.register_fake
def _(q, k, first, temperature, both):
    wide = torch.promote_types(q.dtype, torch.float32)
    shapes = (), (q.shape[0],), (k.shape[0] if both else 0,)
    return tuple(q.new_empty(shape, dtype=wide) for shape in shapes)


@torch.library.custom_op("maekernels::contrast_backward", mutates_args=(), device_types="cpu")
def _contrast_backward(
    grad: Tensor, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, first: int, temperature: float, both: bool
) -> tuple[Tensor, Tensor]:
    return _backward_in_strips(_reference_weights, grad, q, k, rows, columns, first, temperature, both)


@_contrast_backward.register_fake
def _(grad, q, k, rows, columns, first, temperature, both):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))


def _setup_unit(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output)


def _backward_unit(ctx, grad, _):
    return _unit_rows_backward(grad, *ctx.saved_tensors)


def _setup_contrast(ctx, inputs, output):
    q, k, *ctx.settings = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(q, k, *output[1:])


def _backward_contrast(ctx, grad, *_):
    return (*_contrast_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None)


_unit_rows.register_autograd(_backward_unit, setup_context=_setup_unit)
_contrast.register_autograd(_backward_contrast, setup_context=_setup_contrast)
register_cuda(_unit_rows, _launch_unit)
register_cuda(_unit_rows_backward, _launch_unit_backward)
register_cuda(_contrast, _launch_contrast)
register_cuda(_contrast_backward, _launch_contrast_backward)
