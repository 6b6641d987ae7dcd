"""csrc/cuda compiles within its budgets, and what it builds loads without a GPU."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.csrc.resources import (
    ARCHS,
    FLAGS,
    HERE,
    SOURCES,
    Budget,
    Usage,
    assemble,
    demangle,
    find_nvcc,
    include_flags,
    judge,
    read,
    read_budgets,
)

NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc in PATH, CUDA_HOME or CUDA_PATH")

REPORT = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_ZN2me4sortINS_5ShapeIjLj256EEEEEvPj' for 'sm_90a'
ptxas info    : Function properties for _ZN2me4sortINS_5ShapeIjLj256EEEEEvPj
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 6224 bytes smem
ptxas info    : Compiling entry function '_ZN2me4fillEPj' for 'sm_90a'
ptxas info    : Function properties for _ZN2me4fillEPj
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
SORT = Usage("sort<Shape<unsigned int, 256>>", "90a", 40, 16, 12, 6224)
FILL = Usage("fill", "90a", 8, 0, 0, 0)


@needs_nvcc
def test_reads_the_report():
    assert read(demangle(REPORT)) == [SORT, FILL]


def test_refuses_a_report_of_another_form():
    with pytest.raises(ValueError, match="changed its form"):
        read("Compiling entry function 'fill(unsigned int*)' for 'sm_90a'\nUses 8 registers\n")


def test_every_fault_is_named():
    budgets = {SORT.kernel: Budget(registers=32, shared=4096), "gone": Budget(registers=32, shared=0)}
    assert judge([SORT, FILL], budgets) == [
        f"{SORT.kernel}, sm_90a: 16 bytes of stack, 12 bytes of spills",
        f"{SORT.kernel}, sm_90a: registers 40 > 32",
        f"{SORT.kernel}, sm_90a: shared 6224 > 4096",
        "fill, sm_90a: no budget",
        "gone: a budget without a kernel",
    ]
    assert judge([FILL], {"fill": Budget(registers=8, shared=0)}) == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_are_within_their_budgets(arch):
    usages = [usage for source in sorted(SOURCES.glob("*.cu")) for usage in read(assemble(str(NVCC), source, arch))]
    assert judge(usages, read_budgets(HERE / "budgets.toml")) == []


LOAD = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("_C_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.TOOLKIT)
op = torch.ops.maekernels_cuda.random_mask
print(op.default._schema)
try:
    op(2, 8, 3, torch.tensor(1), 0, None, 0)
except NotImplementedError as error:
    print("refused:", str(error).split(" with arguments")[0])
"""


@needs_nvcc
@pytest.mark.slow
def test_extension_loads_without_a_gpu(tmp_path):
    """Linked like the package's, with the CUDA runtime inside; a CPU tensor finds no kernel."""
    target, library = tmp_path / "_C_cuda.so", Path(torch.__file__).parent / "lib"
    sources = [str(path) for path in sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cpp")])]
    flags = [*FLAGS, *include_flags(), f"-I{sysconfig.get_paths()['include']}", "-arch=sm_90a", "--cudart=static"]
    flags += ["-shared", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DPy_LIMITED_API=0x030b0000"]
    link = [f"-L{library}", "-ltorch_cpu", f"-Xlinker=-rpath={library}"]
    subprocess.run([str(NVCC), *flags, *sources, *link, "-o", str(target)], check=True)
    done = subprocess.run([sys.executable, "-c", LOAD, str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    toolkit, schema, refused = done.stdout.splitlines()
    release = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    assert f"release {int(toolkit) // 1000}.{int(toolkit) % 1000 // 10}," in release
    arguments = "int batch, int length, int num_keep, Tensor seed, int offset, Tensor? groups, int stream"
    assert schema == f"maekernels_cuda::random_mask({arguments}) -> (Tensor, Tensor)"
    assert refused == "refused: Could not run 'maekernels_cuda::random_mask'"
