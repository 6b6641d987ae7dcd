"""The sanitizer catches a planted bug of every kind it claims to find, and lets clean kernels pass."""

# Numbers passed for `tl.constexpr` parameters are what Triton expects.
# pyright: reportArgumentType=false

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from accesses import Argument
from sanitizer import Sanitizer, SanitizerError, unbacked_zeros

N = 37
BLOCK = 16
GRID = (triton.cdiv(N, BLOCK),)


def numbers(n: int = N, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype)


# Clean kernels


@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    total = tl.load(x + i, mask=inside, other=0.0) + tl.load(y + i, mask=inside, other=0.0)
    tl.store(out + i, total, mask=inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_clean_kernel_passes(dtype: torch.dtype) -> None:
    x, y = numbers(dtype=dtype), numbers(dtype=dtype).flip(0)
    out = torch.empty_like(x)
    add_kernel[GRID](x, y, out, N, BLOCK)
    torch.testing.assert_close(out, x + y, rtol=0, atol=0)


def test_argument_that_is_read_and_written_by_the_same_program_passes() -> None:
    x = numbers()
    want = x + x
    add_kernel[GRID](x, x, x, N, BLOCK)
    torch.testing.assert_close(x, want, rtol=0, atol=0)


def test_empty_grid_and_empty_tensors_pass() -> None:
    empty = torch.empty(0)
    add_kernel[(0,)](empty, empty, empty, 0, BLOCK)
    add_kernel[(1,)](empty, empty, empty, 0, BLOCK)


@triton.jit
def scale_kernel(x, seed, out, n, BLOCK: tl.constexpr):
    """A bit of everything that an op does: helper call, loop, philox, select, reduction, a cast at the end."""
    row = tl.program_id(1).to(tl.int64) * n
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = tl.load(x + row + i, mask=i < n).to(tl.float32)
        total += tl.where(i < n, value, 0.0)
    norm = tl.sqrt(tl.sum(total * total) + 1.0)
    a, _, _, _ = tl.randint4x(tl.load(seed), tl.arange(0, BLOCK))
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = tl.load(x + row + i, mask=i < n, other=0.0).to(tl.float32)
        coin = (a >> 31).to(tl.float32) * 0.0
        tl.store(out + row + i, (value / norm + coin).to(out.dtype.element_ty), mask=i < n)


def test_random_loop_and_reduction_pass() -> None:
    x, seed = numbers(3 * N).view(3, N), torch.tensor(2**40 + 3)
    out = torch.empty(3, N, dtype=torch.bfloat16)
    scale_kernel[(1, 3)](x, seed, out, N, BLOCK)
    columns = torch.nn.functional.pad(x, (0, 48 - N)).view(3, 3, BLOCK).sum(1)
    want = (x / (columns.square().sum(1, keepdim=True) + 1).sqrt()).bfloat16()
    torch.testing.assert_close(out, want)


# Bounds


@triton.jit
def copy_kernel(x, out, n_load, n_store, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n_load, other=0.0)
    tl.store(out + i, value, mask=i < n_store)


def test_load_past_the_end_is_caught() -> None:
    with pytest.raises(SanitizerError, match=r"load at test_sanitizer.py:\d+ by program 0: 2 .* argument 'x'"):
        copy_kernel[(1,)](numbers(7), torch.empty(16), 9, 9, BLOCK)


def test_store_past_the_end_is_caught() -> None:
    with pytest.raises(SanitizerError, match=r"store at .* 1 address.* argument 'out', first at byte 32 "):
        copy_kernel[(1,)](numbers(16), torch.empty(8), 9, 9, BLOCK)


def test_another_arguments_memory_is_out_of_bounds() -> None:
    """Both lie in one storage: running off `out` lands in `x`."""
    memory = torch.zeros(32)
    with pytest.raises(SanitizerError, match="argument 'out'"):
        copy_kernel[(1,)](memory[8:24], memory[:8], 9, 9, BLOCK)


def test_negative_index_is_caught() -> None:
    memory = torch.zeros(32)
    with pytest.raises(SanitizerError, match="outside the elements of argument 'x'"):
        shifted_kernel[(1,)](memory[8:16], torch.empty(8), -1)


@triton.jit
def shifted_kernel(x, out, shift):
    i = tl.arange(0, 8)
    tl.store(out + i, tl.load(x + i + shift))


@triton.jit
def row_kernel(x, out, stride, SIZE: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, SIZE)
    tl.store(out + row * SIZE + i, tl.load(x + row * stride + i))


def test_view_is_its_elements_and_not_its_storage() -> None:
    x = torch.arange(40.0).view(5, 8)[:, :4]
    out = torch.empty(5, 4)
    row_kernel[(5,)](x, out, 8, SIZE=4)
    assert torch.equal(out, x)
    with pytest.raises(SanitizerError, match="argument 'x', first at byte"):
        row_kernel[(5,)](x, torch.empty(5, 8), 8, SIZE=8)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda t: t.transpose(0, 2), id="transposed"),
        pytest.param(lambda t: t[:, ::2], id="strided"),
        pytest.param(lambda t: t[1:, :, 3], id="sliced"),
        pytest.param(lambda t: t[:1].expand(4, 6, 8), id="expanded"),
        pytest.param(lambda t: t[:, 2:3, 1:2], id="one-column"),
    ],
)
def test_elements_of_views_are_told_exactly(view) -> None:
    tensor = view(torch.arange(4 * 6 * 8).view(4, 6, 8))
    addresses = tensor.storage_offset() + torch.arange(-20, 4 * 6 * 8 + 20)
    want = torch.isin(addresses, tensor.flatten() - tensor.flatten()[0] + tensor.storage_offset())
    argument = Argument.of("x", tensor)
    bytes_ = (tensor.data_ptr() + (addresses - tensor.storage_offset()) * 8).numpy().astype("uint64")
    assert argument.holds(bytes_, 8).tolist() == want.tolist()
    half = bytes_ + 4
    assert argument.holds(half, 4).tolist() == want.tolist()
    assert not argument.holds(half, 8).tolist()[-1]


@triton.jit
def wide_kernel(x, out, start):
    wide = (x + start).to(tl.pointer_type(tl.int64))
    tl.store(out + tl.arange(0, 2), tl.load(wide + tl.arange(0, 2)))


def test_misaligned_wide_load_is_caught() -> None:
    x, out = torch.zeros(32, dtype=torch.uint8), torch.empty(2, dtype=torch.int64)
    wide_kernel[(1,)](x, out, 8)
    with pytest.raises(SanitizerError, match="misaligned load"):
        wide_kernel[(1,)](x, out, 4)
    with pytest.raises(SanitizerError, match="outside"):
        wide_kernel[(1,)](x[:20], out, 8)


def test_grid_that_cuda_refuses_is_caught() -> None:
    with pytest.raises(SanitizerError, match="65535"):
        copy_kernel[(1, 70_000)](numbers(), torch.empty(N), 1, 1, BLOCK)


# Races and order


@triton.jit
def overlapping_store_kernel(out, BLOCK: tl.constexpr):
    tl.store(out + tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK), 1.0)


def test_write_write_race_is_caught_even_when_the_values_agree() -> None:
    with pytest.raises(SanitizerError, match=r"race on 2 address\(es\): store .* store"):
        overlapping_store_kernel[(3,)](torch.empty(48), BLOCK)


@triton.jit
def neighbour_kernel(x, out):
    p = tl.program_id(0)
    tl.store(out + p, tl.load(x + p + 1))


def test_read_write_race_is_caught() -> None:
    x = numbers(9)
    neighbour_kernel[(8,)](x, torch.empty(8))
    with pytest.raises(SanitizerError, match=r"race on 7 .*store .*load"):
        neighbour_kernel[(8,)](x, x)


@triton.jit
def wide_store_kernel(out):
    p = tl.program_id(0)
    if p == 0:
        tl.store(out.to(tl.pointer_type(tl.int64)), 0)
    else:
        tl.store(out + p, 1)


def test_race_between_accesses_of_different_width_is_caught() -> None:
    with pytest.raises(SanitizerError, match="race on 1 "):
        wide_store_kernel[(2,)](torch.empty(4, dtype=torch.int32))


@triton.jit
def scatter_add_kernel(x, ids, out, n, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    to = out + tl.load(ids + i, mask=inside, other=0)
    value = tl.load(x + i, mask=inside, other=0.0)
    if ATOMIC:
        tl.atomic_add(to, value, mask=inside)
    else:
        tl.store(to, tl.load(to, mask=inside, other=0.0) + value, mask=inside)


def test_racy_scatter_add_is_caught() -> None:
    ids = torch.arange(N, dtype=torch.int32) % BLOCK
    with pytest.raises(SanitizerError, match="race"):
        scatter_add_kernel[GRID](torch.ones(N), ids, torch.zeros(BLOCK), N, False, BLOCK)


def test_lanes_of_one_store_that_disagree_are_caught() -> None:
    with pytest.raises(SanitizerError, match="two lanes store different values"):
        scatter_add_kernel[(1,)](numbers(), torch.zeros(N, dtype=torch.int32), torch.zeros(4), N, False, BLOCK)


def test_atomic_scatter_add_of_exact_sums_passes() -> None:
    out = torch.zeros(4)
    scatter_add_kernel[GRID](torch.ones(N), torch.arange(N, dtype=torch.int32) % 4, out, N, True, BLOCK)
    assert out.tolist() == [10, 9, 9, 9]


def test_atomic_index_out_of_bounds_is_caught() -> None:
    with pytest.raises(SanitizerError, match=r"atomic .* argument 'out'"):
        scatter_add_kernel[GRID](torch.ones(N), torch.full((N,), 5, dtype=torch.int32), torch.zeros(4), N, True, BLOCK)


@triton.jit
def claim_kernel(owner, slot):
    tl.atomic_cas(owner + slot, 0, 1)


def test_compare_and_swap_out_of_bounds_is_caught() -> None:
    with pytest.raises(SanitizerError, match=r"atomic .* argument 'owner'"):
        claim_kernel[(1,)](torch.zeros(2, dtype=torch.int32), 2)


@triton.jit
def counter_reset_kernel(counter):
    if tl.program_id(0) == 0:
        tl.store(counter, 0)
    else:
        tl.atomic_add(counter, 1)


def test_race_between_a_store_and_an_atomic_is_caught() -> None:
    with pytest.raises(SanitizerError, match=r"race on \d+ .*store .*atomic"):
        counter_reset_kernel[(3,)](torch.zeros(1, dtype=torch.int32))


def test_atomic_sum_that_rounds_differently_in_another_order_is_caught(sanitized: Sanitizer) -> None:
    x, ids = numbers(4000), torch.zeros(4000, dtype=torch.int32)
    with pytest.raises(SanitizerError, match="scatter_add_kernel: the result depends on the order"):
        scatter_add_kernel[(250,)](x, ids, torch.zeros(1), 4000, True, BLOCK)
    sanitized.replay = False
    out = torch.zeros(1)
    scatter_add_kernel[(250,)](x, ids, out, 4000, True, BLOCK)
    torch.testing.assert_close(out, x.sum()[None])


@triton.jit
def slot_kernel(counter, out):
    tl.store(out + tl.atomic_add(counter, 1), tl.program_id(0))


def test_order_dependence_without_a_race_is_caught() -> None:
    counter, out = torch.zeros(1, dtype=torch.int32), torch.empty(8, dtype=torch.int32)
    with pytest.raises(SanitizerError, match="slot_kernel: the result depends on the order"):
        slot_kernel[(8,)](counter, out)


def test_programs_run_in_shuffled_order(sanitized: Sanitizer) -> None:
    sanitized.replay = False
    orders = []
    for _ in range(2):
        out = torch.empty(64, dtype=torch.int32)
        slot_kernel[(4, 4, 4)](torch.zeros(1, dtype=torch.int32), out)
        orders.append(out.tolist())
        assert sorted(out.tolist()) == sorted(list(range(4)) * 16)
    assert orders[0] != orders[1]


# Values that only look right


@triton.jit
def row_sum_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out, tl.sum(tl.load(x + i, mask=i < n)))


@triton.jit
def row_max_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out, tl.max(tl.load(x + i, mask=i < n), axis=0))


@pytest.mark.parametrize("kernel", [row_sum_kernel, row_max_kernel], ids=["sum", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.int64, torch.int16], ids=str)
def test_load_without_other_shows(kernel, dtype: torch.dtype) -> None:
    """In memory and in the bare interpreter the dead lanes are mostly zero, and the sum looks right."""
    x, out = torch.ones(9).to(dtype), torch.zeros(1, dtype=torch.float64)
    kernel[(1,)](x, out, 9, BLOCK)
    assert out.item() != (9 if kernel is row_sum_kernel else 1)


@triton.jit
def scalar_kernel(x, out, on):
    tl.store(out, tl.load(x, mask=on != 0, other=0.0))


def test_scalar_load_with_a_zero_other_is_no_poison() -> None:
    out = torch.empty(1)
    scalar_kernel[(1,)](numbers(), out, 0)
    assert out.item() == 0


@pytest.mark.parametrize("make", [torch.empty, torch.zeros(1).new_empty], ids=["empty", "new_empty"])
def test_unwritten_output_shows(make) -> None:
    out = make(16)
    copy_kernel[(1,)](torch.zeros(16), out, 16, 15, BLOCK)
    assert out[:15].eq(0).all()
    assert out[15].isnan()


def test_unwritten_integers_and_views_show() -> None:
    assert torch.empty(3, dtype=torch.int32).tolist() == [2**31 - 1] * 3
    assert torch.empty_like(torch.zeros(3, dtype=torch.uint8)).tolist() == [255] * 3
    assert torch.empty_strided((2, 3), (1, 2)).isnan().all()
    assert torch.empty(4, dtype=torch.bfloat16).isnan().all()


# Integers


@triton.jit
def stride_kernel(x, out, stride, WIDE: tl.constexpr):
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
    tl.store(out + row, tl.load(x + row * stride))


def test_int32_index_overflow_is_caught() -> None:
    x = unbacked_zeros(3, 2**30, dtype=torch.uint8)
    x[2, 0] = 7
    out = torch.zeros(3, dtype=torch.uint8)
    stride_kernel[(3,)](x, out, x.stride(0), WIDE=True)
    assert out.tolist() == [0, 0, 7]
    with pytest.raises(SanitizerError, match=r"int32 multiply at test_sanitizer.py:\d+ overflows: 2147483648"):
        stride_kernel[(3,)](x, out, x.stride(0), WIDE=False)


@triton.jit
def int_kernel(x, out, OP: tl.constexpr):
    value = tl.load(x)
    if OP == "add":
        tl.store(out, value.to(tl.int32) + 1)
    elif OP == "shift":
        tl.store(out, value.to(tl.int32) << 1)
    elif OP == "narrow":
        tl.store(out, (value + 1).to(tl.int32))
    else:
        tl.store(out, value.to(tl.uint32) * 0x9E3779B9)


@pytest.mark.parametrize("op", ["add", "shift", "narrow"])
def test_integer_overflow_is_caught(op: str) -> None:
    with pytest.raises(SanitizerError, match="overflows: "):
        int_kernel[(1,)](torch.tensor([2**31 - 1]), torch.zeros(1, dtype=torch.int64), op)


def test_unsigned_arithmetic_may_wrap() -> None:
    out = torch.zeros(1, dtype=torch.int64)
    int_kernel[(1,)](torch.tensor([2**31 - 1]), out, "hash")
    assert out.item() == (2**31 - 1) * 0x9E3779B9 % 2**32


# Hints and asserts


@triton.jit
def hint_kernel(x, out, stride):
    i = tl.max_contiguous(tl.multiple_of(tl.program_id(0) * stride + tl.arange(0, 8), 8), 8)
    tl.store(out + tl.program_id(0) * 8 + tl.arange(0, 8), tl.load(x + i))


@triton.jit
def gap_kernel(x, out):
    i = tl.max_contiguous(tl.arange(0, 8) * 2, 4)
    tl.store(out + tl.arange(0, 8), tl.load(x + i))


def test_false_hints_are_caught() -> None:
    hint_kernel[(2,)](numbers(), torch.empty(16), 16)
    with pytest.raises(SanitizerError, match=r"false hint at .* tt.divisibility 8 "):
        hint_kernel[(2,)](numbers(), torch.empty(16), 12)
    with pytest.raises(SanitizerError, match=r"tt.contiguity 4 "):
        gap_kernel[(1,)](numbers(), torch.empty(8))


@triton.jit
def assert_kernel(x):
    tl.device_assert(tl.load(x + tl.arange(0, 4)) > 0, "not positive")


def test_device_assert_is_on() -> None:
    assert_kernel[(1,)](torch.ones(4))
    with pytest.raises(Exception, match="not positive"):
        assert_kernel[(1,)](-torch.ones(4))


# bfloat16


@triton.jit
def bf16_kernel(x, y, out, OP: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    a, b = tl.load(x + i), tl.load(y + i)
    if OP == "add":
        value = a + b
    elif OP == "sub":
        value = a - b
    elif OP == "mul":
        value = a * b
    elif OP == "constant":
        value = a * 1.5
    elif OP == "where":
        value = tl.where(a < b, a, b)
    elif OP == "abs":
        value = tl.abs(a)
    else:
        value = -a
    tl.store(out + i, value)


_BF16 = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "constant": lambda a, b: a * 1.5,
    "where": torch.minimum,
    "abs": lambda a, b: a.abs(),
    "negate": lambda a, b: -a,
}


@pytest.mark.parametrize("op", _BF16)
def test_bf16_arithmetic_is_rounded_once(op: str) -> None:
    x, y = numbers(1024, torch.bfloat16), numbers(2048, torch.bfloat16)[1024:]
    out = torch.empty_like(x)
    bf16_kernel[(1,)](x, y, out, op, 1024)
    assert torch.equal(out, _BF16[op](x, y))


@triton.jit
def cast_kernel(x, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


def test_fp32_rounds_to_the_nearest_even_bf16() -> None:
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3.4e38, 1e-40, float("inf"), 0.0])
    x = torch.cat([ties, numbers(1016) * 1e3])
    out = torch.empty(1024, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, out, 1024)
    assert torch.equal(out, x.bfloat16())
    x[0] = float("nan")
    cast_kernel[(1,)](x, out, 1024)
    assert out[0].isnan()


@triton.jit
def rounding_kernel(x, out, ROUNDING: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16, fp_downcast_rounding=ROUNDING))


@pytest.mark.parametrize("rounding", ["rtne", "rtz"])
def test_explicit_rounding_to_bf16(rounding: str) -> None:
    x = torch.cat([torch.tensor([1 + 2**-8, 2 - 2**-9]), numbers(1022)])
    out = torch.empty(1024, dtype=torch.bfloat16)
    rounding_kernel[(1,)](x, out, rounding, 1024)
    towards_zero = (x.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(out, x.bfloat16() if rounding == "rtne" else towards_zero)


@triton.jit
def fma_kernel(x, y, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, tl.fma(a, b, a))


def test_bf16_fma_is_rounded_once() -> None:
    x, y = numbers(256, torch.bfloat16), numbers(512, torch.bfloat16)[256:]
    out = torch.empty_like(x)
    fma_kernel[(1,)](x, y, out, 256)
    assert torch.equal(out, (x.double() * y.double() + x.double()).float().bfloat16())
    assert not torch.equal(out, x * y + x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int32, torch.uint8], ids=str)
def test_bf16_casts_both_ways(dtype: torch.dtype) -> None:
    x = torch.arange(128).to(dtype)
    there, back = torch.empty(128, dtype=torch.bfloat16), torch.empty(128, dtype=dtype)
    cast_kernel[(1,)](x, there, 128)
    cast_kernel[(1,)](there, back, 128)
    assert torch.equal(there, x.bfloat16())
    assert torch.equal(back, x)


@triton.jit
def dot_kernel(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    product = tl.dot(tl.load(a + m[:, None] * K + k), tl.load(b + k[:, None] * N + n))
    tl.store(out + m[:, None] * N + n, product)


def test_bf16_dot_accumulates_in_fp32() -> None:
    a, b = numbers(64 * 32, torch.bfloat16).view(64, 32), numbers(32 * 16, torch.bfloat16).view(32, 16)
    out = torch.empty(64, 16)
    dot_kernel[(1,)](a, b, out, 64, 16, 32)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-6, atol=1e-5)


def test_sum_in_bf16_is_refused() -> None:
    with pytest.raises(Exception, match="accumulates in bf16"):
        row_sum_kernel[(1,)](numbers(16, torch.bfloat16), torch.zeros(1), 16, BLOCK)
