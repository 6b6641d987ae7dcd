"""The native kernels of csrc/. All else is in pyproject.toml.

MAEKERNELS_SKIP_CPU=1 and MAEKERNELS_SKIP_CUDA=1 leave one out. What cannot be built is named and left out too: the
install succeeds, and the ops run on torch and Triton.

Only LibTorch's stable ABI and Python's limited API are used: one binary serves torch 2.11 and later, Python 3.11 and
later. nvcc is called by hand because torch's own `CUDAExtension` refuses where torch is a CPU build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

try:
    from torch.utils import cpp_extension
except ImportError:
    cpp_extension = None

DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]  # 2.11
# Nothing is contracted or reordered: results are the same for every instruction set.
CXX = ["-std=c++20", "-O3", "-fopenmp-simd", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
HIDDEN = ["-fvisibility=hidden"]
NVCC = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
ARCHITECTURES = ("80", "90a", "100")


def say(what: str, why: object) -> None:
    print(f"maekernels: the native {what} kernels are not built: {why}", file=sys.stderr, flush=True)


def extensions() -> list:
    if cpp_extension is None:
        say("CPU and CUDA", "torch is not in the build's environment")
        return []
    found = []
    cuda = sorted(glob("csrc/cuda/*.cu"))
    for what, name, sources, missing in (
        ("CPU", "maekernels._C", sorted(glob("csrc/cpu/*.cpp")), None),
        ("CUDA", "maekernels._C_cuda", sorted(glob("csrc/cuda/*.cpp")), None if shutil.which("nvcc") else "no nvcc"),
    ):
        if os.environ.get(f"MAEKERNELS_SKIP_{what}", "0") not in ("", "0"):
            say(what, f"MAEKERNELS_SKIP_{what} is set")
        elif missing:
            say(what, missing)
        elif sources:
            flags = {"cxx": [*CXX, *HIDDEN, *DEFINES]}
            ext = cpp_extension.CppExtension(name, sources, extra_compile_args=flags, py_limited_api=True)
            ext.what, ext.cuda = what, cuda if what == "CUDA" else []
            if ext.cuda:
                ext.library_dirs += cuda_libraries()
                ext.libraries += ["cudart_static", "rt", "dl", "pthread"]
            found.append(ext)
    return found


def cuda_libraries() -> list[str]:
    """Where nvcc looks for its runtime; nvcc itself may be a script that lies elsewhere."""
    said = subprocess.run(["nvcc", "--dryrun", "-c", "any.cu"], capture_output=True, text=True).stderr
    return re.findall(r'"-L([^"]+)"', said.partition("LIBRARIES=")[2].partition("\n")[0])


def compile_cuda(source: str, folder: str) -> str:
    """The object file of a .cu."""
    target = Path(folder, source).with_suffix(".o")
    target.parent.mkdir(parents=True, exist_ok=True)
    include = [f"-isystem={path}" for path in cpp_extension.include_paths()]
    archs = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    subprocess.run(["nvcc", "-c", *NVCC, *DEFINES, *archs, *include, source, "-o", str(target)], check=True)
    return str(target)


commands = {}
if cpp_extension is not None:

    class BuildEach(cpp_extension.BuildExtension):
        """Build each extension by itself, and go on without one that fails."""

        def build_extensions(self) -> None:
            wanted, built = self.extensions, []
            for ext in wanted:
                self.extensions = [ext]
                try:
                    ext.extra_objects = [compile_cuda(source, self.build_temp) for source in ext.cuda]
                    super().build_extensions()
                    built.append(ext)
                except (Exception, SystemExit) as error:
                    say(ext.what, str(error).strip().partition("\n")[0] or type(error).__name__)
            self.extensions = built

    commands["build_ext"] = BuildEach

modules = extensions()
setup(
    ext_modules=modules,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if modules else {},
)
