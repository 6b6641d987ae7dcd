"""A sanitizer for Triton kernels in the interpreter: it finds on a CPU what a GPU does silently.

While installed (`installed()`, the fixture `sanitized`), every launch of an interpreted kernel raises
`SanitizerError`, naming the kernel's line, for

- an address outside the elements of the tensor argument it was derived from (a view's elements, not its storage),
  and an access that is not aligned to its width;
- two programs that touch an address, one of them with a plain store; two lanes that store different values to one;
- a result that depends on the order in which programs run (their order is shuffled; launches that use atomics, whose
  results can depend on it without a race, run a second time in reverse);
- int32 index arithmetic that overflows, and int64 that does not fit the int32 it is narrowed to;
- a false `tl.multiple_of`, `tl.max_contiguous` or `tl.max_constancy`, by which a GPU would address wrongly;
- a grid that CUDA refuses.

What cannot be told from a right value is made to show in the result: lanes masked off in a load without `other` hold
poison, and `torch.empty` is filled with NaN (integers: their largest value). bf16 is exact (`exact_bf16`).
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exact_bf16
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
import triton.runtime.interpreter as interpreter
from accesses import Access, Argument, find_race
from triton.language.semantic import TritonSemantic
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

Method = Callable[..., Any]
"""One of the interpreter's, which a wrapper gets as its first argument."""
_TRITON = str(Path(triton.__file__).parent)
_TOOLS = str(Path(__file__).parent / "sanitizer.py"), exact_bf16.__file__
_MAP_NORESERVE = 0x4000
"""Linux's constant, which not every Python's `mmap` names: do not promise the memory now."""
_REPLAY_BYTES = 2**26
"""Launches with larger arguments are not run a second time."""


class SanitizerError(AssertionError):
    """What a launch did wrong, and where."""


@contextlib.contextmanager
def installed(seed: int = 0) -> Iterator[Sanitizer]:
    """Check every launch inside the `with`; `seed` shuffles the programs."""
    fill = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        exact_bf16.install(patch)
        sanitizer = Sanitizer(seed)
        sanitizer.install(patch)
        torch.use_deterministic_algorithms(True)  # which also fills uninitialised memory
        try:
            yield sanitizer
        finally:
            torch.use_deterministic_algorithms(fill)


def unbacked_zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory only where touched: tensors of many gigabytes, to see index arithmetic overflow."""
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Sanitizer:
    """The patches, and what the launch under way has touched so far."""

    def __init__(self, seed: int) -> None:
        self.replay = True
        """Run launches that use atomics again in reverse order, and compare."""
        self._random = np.random.default_rng(seed)
        self._arguments: dict[int, Argument] = {}
        self._storages: list[torch.UntypedStorage] = []
        self._before: list[torch.Tensor] | None = None
        self._accesses: list[Access] = []
        self._order: np.ndarray = np.arange(0)
        self._reverse = False
        self._program = 0
        self._other_given = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Wrap the interpreter's methods until `patch` is undone."""

        def wrap(owner: Any, name: str, wrapper: Method) -> None:
            original = getattr(owner, name)
            patch.setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))

        wrap(GridExecutor, "__call__", self._launch)
        wrap(GridExecutor, "_init_args_hst", self._prepare_arguments)
        wrap(interpreter, "_implicit_cvt", self._tag_pointer)
        for name in ("addptr", "splat", "broadcast", "expand_dims", "reshape", "trans", "select", "bitcast"):
            wrap(InterpreterBuilder, f"create_{name}", self._hand_on_argument)
        wrap(InterpreterBuilder, "set_grid_dim", self._shuffle_programs)
        wrap(InterpreterBuilder, "set_grid_idx", self._choose_program)
        wrap(TritonSemantic, "load", self._note_other)
        wrap(InterpreterBuilder, "create_masked_load", self._load)
        wrap(InterpreterBuilder, "create_masked_store", self._store)
        wrap(InterpreterBuilder, "create_atomic_rmw", self._atomic_rmw)
        wrap(InterpreterBuilder, "create_atomic_cas", self._atomic_cas)
        wrap(InterpreterBuilder, "binary_op", self._binary_op)
        wrap(InterpreterBuilder, "cast_impl", self._cast)
        wrap(TensorHandle, "set_attr", self._check_hint)
        # Turns tl.device_assert on. The overflow checks of this mode also fire on uint32, which hashes let wrap.
        options = interpreter.InterpreterOptions(debug=True, sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)

    # The launch

    def _launch(self, original: Method, executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        self._run(original, executor, args, kwargs, reverse=False)
        atomics = any(access.kind == "atomic" for access in self._accesses)
        if not (self.replay and atomics and self._before is not None):
            return
        storages, before = self._storages, self._before
        first = [_bytes(storage).clone() for storage in storages]
        for storage, content in zip(storages, before, strict=True):
            _bytes(storage).copy_(content)
        self._run(original, executor, args, kwargs, reverse=True)
        if not all(torch.equal(_bytes(storage), content) for storage, content in zip(storages, first, strict=True)):
            raise SanitizerError(f"{executor.fn.__name__}: the result depends on the order in which programs run")

    def _run(self, original: Method, executor: GridExecutor, args: Any, kwargs: Any, reverse: bool) -> None:
        self._reverse = reverse
        self._accesses.clear()
        # Dead lanes compute on poison and divide by zero, on a GPU without a word.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            for category in (RuntimeWarning, DeprecationWarning):  # the latter: triton 3.6 under numpy 2
                warnings.simplefilter("ignore", category)
            try:
                original(executor, *args, **kwargs)
            except interpreter.InterpreterError as error:
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                if isinstance(cause, SanitizerError):
                    raise cause from None
                raise
        race = find_race(self._accesses)
        if race:
            raise SanitizerError(race)

    def _prepare_arguments(self, original: Method, executor: GridExecutor, args: Any, kwargs: Any) -> Any:
        """Note the tensors that the kernel may touch, and keep their contents for a second run."""
        on_host = original(executor, args, kwargs)
        named = [*zip(executor.arg_names, on_host[0], strict=False), *on_host[1].items()]
        tensors = [(name, tensor) for name, value in named for tensor in _tensors(value)]
        self._arguments = {id(tensor): Argument.of(name, _unwrapped(tensor)) for name, tensor in tensors}
        storages = (_unwrapped(tensor).untyped_storage() for _, tensor in tensors)
        self._storages = list({storage.data_ptr(): storage for storage in storages}.values())
        small = sum(storage.nbytes() for storage in self._storages) <= _REPLAY_BYTES
        self._before = [_bytes(storage).clone() for storage in self._storages] if small else None
        return on_host

    def _shuffle_programs(self, original: Method, builder: InterpreterBuilder, *grid: int) -> None:
        """CUDA starts blocks in no promised order."""
        if grid[0] >= 2**31 or max(grid[1:]) > 65535:
            raise SanitizerError(f"grid {grid}: CUDA allows at most (2147483647, 65535, 65535) programs")
        order = self._order[::-1] if self._reverse else self._random.permutation(math.prod(grid))
        self._order = order
        original(builder, *grid)

    def _choose_program(self, original: Method, builder: InterpreterBuilder, x: int, y: int, z: int) -> None:
        _, rows, columns = builder.grid_dim
        self._program = int(self._order[(x * rows + y) * columns + z])
        row, z = divmod(self._program, columns)
        original(builder, *divmod(row, rows), z)

    # Where pointers come from

    def _tag_pointer(self, original: Method, value: Any) -> Any:
        converted = original(value)
        if id(value) in self._arguments:
            converted.handle.attr["argument"] = self._arguments[id(value)]
        return converted

    def _hand_on_argument(self, original: Method, *operands: Any, **kwargs: Any) -> TensorHandle:
        result = original(*operands, **kwargs)
        origins = {operand.attr.get("argument") for operand in operands if _is_pointer(operand)}
        if len(origins) == 1:
            result.attr["argument"] = origins.pop()
        return result

    # Memory

    def _touch(self, kind: str, pointers: TensorHandle, mask: Any) -> np.ndarray:
        """Check and record an access; the lanes that take part."""
        lanes = np.ones(pointers.data.shape, bool) if mask is None else np.asarray(mask.data, bool)
        lanes = np.broadcast_to(lanes, pointers.data.shape)
        addresses = np.unique(pointers.data[lanes])
        if not addresses.size:
            return lanes
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        access = Access(kind, self._program, addresses, width, _kernel_line())
        if np.any(addresses % width):
            raise SanitizerError(f"misaligned {access}: {width} bytes at an address that is not a multiple of {width}")
        argument = pointers.attr.get("argument")
        candidates = [argument] if argument else list(self._arguments.values())
        inside = np.zeros(addresses.shape, bool)
        for candidate in candidates:
            inside |= candidate.holds(addresses, width)
        if not inside.all():
            outside = addresses[~inside]
            where = "every argument"
            if argument:
                where = f"argument {argument.name!r}, first at byte {int(outside[0]) - argument.start} from its start"
            raise SanitizerError(f"{access}: {outside.size} address(es) outside the elements of {where}")
        self._accesses.append(access)
        return lanes

    def _note_other(self, original: Method, semantic: Any, ptr: Any, mask: Any, other: Any, *rest: Any) -> Any:
        """The interpreter forgets an `other` of a single zero on its way to the load."""
        self._other_given = other is not None
        return original(semantic, ptr, mask, other, *rest)

    def _load(
        self, original: Method, builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **kw: Any
    ) -> TensorHandle:
        lanes = self._touch("load", pointers, mask)
        if other is None and not self._other_given and not lanes.all():
            other = _poison(pointers)
        return original(builder, pointers, mask, other, *rest, **kw)

    def _store(
        self, original: Method, builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **kw: Any
    ) -> Any:
        lanes = self._touch("store", pointers, mask)
        addresses = pointers.data[lanes]
        unique, first, inverse = np.unique(addresses, return_index=True, return_inverse=True)
        if unique.size < addresses.size:
            stored = np.broadcast_to(value.data, pointers.data.shape)[lanes]
            bits = np.ascontiguousarray(stored).view(f"u{stored.itemsize}")
            if np.any(bits[first][inverse] != bits):
                raise SanitizerError(f"store at {_kernel_line()}: two lanes store different values to one address")
        return original(builder, pointers, value, mask, *rest, **kw)

    def _atomic_rmw(
        self, original: Method, builder: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any
    ) -> Any:
        if value.dtype.scalar == tl.bfloat16:
            raise SanitizerError(f"atomic at {_kernel_line()}: the interpreter has no bf16 atomics")
        self._touch("atomic", pointers, mask)
        return original(builder, op, pointers, value, mask, *rest)

    def _atomic_cas(self, original: Method, builder: Any, pointers: Any, *rest: Any) -> Any:
        self._touch("atomic", pointers, None)
        return original(builder, pointers, *rest)

    # Arithmetic

    def _binary_op(self, original: Method, builder: Any, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        if op in (np.add, np.subtract, np.multiply, np.left_shift) and lhs.dtype.scalar == tl.int32:
            _check_int32(op(lhs.data.astype(np.int64), rhs.data.astype(np.int64)), f"int32 {op.__name__}")
        return original(builder, lhs, rhs, op)

    def _cast(self, original: Method, builder: Any, source: TensorHandle, to: tl.dtype) -> TensorHandle:
        if source.dtype.scalar == tl.int64 and to.scalar == tl.int32:
            _check_int32(source.data, "int64 narrowed to int32")
        return original(builder, source, to)

    def _check_hint(self, original: Method, handle: TensorHandle, key: str, values: list[int]) -> None:
        """The compiler believes hints and merges lanes into one wide access at the first lane's address."""
        step = max(1, handle.get_element_ty().primitive_bitwidth // 8) if _is_pointer(handle) else 1
        for axis, hint in enumerate(values):
            size = handle.data.shape[axis]
            groups = np.moveaxis(handle.data, axis, -1).astype(np.int64)
            if key == "tt.divisibility":
                true = np.all(groups[..., 0] % hint == 0)
            else:
                groups = groups.reshape(*groups.shape[:-1], -1, min(hint, size))
                true = np.all(np.diff(groups) == (step if key == "tt.contiguity" else 0))
            if not true:
                raise SanitizerError(f"false hint at {_kernel_line()}: {key} {hint} along axis {axis}")
        original(handle, key, values)


def _check_int32(exact: np.ndarray, what: str) -> None:
    limits = np.iinfo(np.int32)
    wrong = exact[(exact < limits.min) | (exact > limits.max)]
    if wrong.size:
        raise SanitizerError(
            f"{what} at {_kernel_line()} overflows: {int(wrong[0])}; index with int64, hash with uint32"
        )


def _poison(pointers: TensorHandle) -> TensorHandle:
    """What masked-off lanes hold: NaN between the largest and smallest number (`tl.max` ignores NaN); for integers a
    number that no kernel expects, yet small enough for the index arithmetic of dead lanes not to overflow."""
    dtype = pointers.get_element_ty()
    if dtype.is_floating():
        largest = {16: 6e4, 32: 3e38, 64: 1e308}[dtype.primitive_bitwidth]
        cycle = np.array([math.nan, largest, -largest])
    else:
        cycle = np.array([{1: 1, 8: 0x6B, 16: 32003}.get(dtype.primitive_bitwidth, 1_000_003)])
    cycle = exact_bf16.round_to_bf16(cycle) if dtype == tl.bfloat16 else cycle.astype(interpreter._get_np_dtype(dtype))
    return TensorHandle(np.resize(cycle, pointers.data.shape), dtype)


def _is_pointer(operand: Any) -> bool:
    return isinstance(operand, TensorHandle) and operand.dtype.scalar.is_ptr()


def _tensors(value: Any) -> Iterator[Any]:
    """The tensors inside an argument: itself, a tuple's, or a descriptor's base."""
    if isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "data_ptr"):
        yield value
    elif hasattr(value, "base"):
        yield from _tensors(value.base)


def _unwrapped(tensor: Any) -> torch.Tensor:
    return interpreter._unwrap_tensor(tensor)


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _kernel_line() -> str:
    """file:line of the innermost frame that belongs to neither Triton nor these tools: the kernel's."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_TRITON) and path not in _TOOLS:
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown"
