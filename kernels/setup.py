"""The native kernels of csrc/. All else is in pyproject.toml.

csrc/ lies beside this folder in a checkout, and in this folder in an sdist, which takes it along.

MAEKERNELS_SKIP_CPU=1 and MAEKERNELS_SKIP_CUDA=1 leave one out. What cannot be built is named and left out too: the
install succeeds, and the ops run on torch and Triton.

Only LibTorch's stable ABI and Python's limited API are used: one binary serves torch 2.11 and later, Python 3.11 and
later. nvcc is called by hand because torch's own `CUDAExtension` refuses where torch is a CPU build.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

try:
    from torch.utils import cpp_extension
except ImportError:
    cpp_extension = None

DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]  # 2.11
# Nothing is contracted or reordered: results are the same for every instruction set.
CXX = ["-std=c++20", "-O3", "-fopenmp-simd", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
HIDDEN = ["-fvisibility=hidden"]
NVCC = ["-std=c++20", "-O3", "--cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
ARCHITECTURES = ("80", "90a", "100")
"""Of these, what nvcc knows: 100 since CUDA 12.8."""
VIRTUAL = "80"
"""PTX, which drivers compile for the GPUs that are not named."""

HERE = Path(__file__).resolve().parent
CSRC = (HERE if (HERE / "PKG-INFO").exists() else HERE.parent) / "csrc"


def say(what: str, why: object) -> None:
    print(f"maekernels: the native {what} kernels are not built: {why}", file=sys.stderr, flush=True)


def sources_of(pattern: str) -> list[str]:
    """Absolute: the object files of relative ones above this folder would lie above the build's."""
    return sorted(str(path) for path in CSRC.glob(pattern))


def extensions() -> list:
    if cpp_extension is None:
        say("CPU and CUDA", "torch is not in the build's environment")
        return []
    found = []
    for what, name, missing in (
        ("CPU", "maekernels._C", None),
        ("CUDA", "maekernels._C_cuda", None if shutil.which("nvcc") else "no nvcc"),
    ):
        sources = sources_of(f"{what.lower()}/*.cpp")
        if os.environ.get(f"MAEKERNELS_SKIP_{what}", "0") not in ("", "0"):
            say(what, f"MAEKERNELS_SKIP_{what} is set")
        elif missing:
            say(what, missing)
        elif not sources:
            say(what, f"{CSRC / what.lower()} has no sources")
        else:
            flags = {"cxx": [*CXX, *HIDDEN, *DEFINES]}
            found.append(cpp_extension.CppExtension(name, sources, extra_compile_args=flags, py_limited_api=True))
    return found


def compile_cuda(source: str, folder: str) -> str:
    """The object file of a .cu."""
    target = Path(folder, "cuda", Path(source).name).with_suffix(".o")
    target.parent.mkdir(parents=True, exist_ok=True)
    assert cpp_extension is not None
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    told = subprocess.run(["nvcc", "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
    known = [arch for arch in ARCHITECTURES if f"compute_{arch.rstrip('a')}" in told]
    archs = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in known]
    archs.append(f"-gencode=arch=compute_{VIRTUAL},code=compute_{VIRTUAL}")
    subprocess.run(["nvcc", "-c", *NVCC, *DEFINES, *archs, *include, source, "-o", str(target)], check=True)
    return str(target)


def cuda_runtime() -> list[str]:
    """What the linker needs of CUDA: its runtime, static, so that it need not be that of torch."""
    told = subprocess.run(["nvcc", "--dryrun", "any.cu"], check=True, capture_output=True, text=True).stderr
    folders = next(line for line in told.splitlines() if "LIBRARIES=" in line).partition("LIBRARIES=")[2]
    return [*shlex.split(folders), "-lcudart_static", "-lrt", "-ldl", "-lpthread"]


class SourcesToo(sdist):
    """An sdist with a copy of csrc."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        shutil.copytree(CSRC, Path(base_dir, "csrc"), ignore=shutil.ignore_patterns("__pycache__", "*.o"))


commands: dict[str, type] = {"sdist": SourcesToo}
if cpp_extension is not None:

    class BuildEach(cpp_extension.BuildExtension):
        """Build each extension by itself, and go on without one that fails."""

        def get_source_files(self) -> list[str]:
            """None for the manifest: absolute names do not belong into an sdist, which copies csrc itself."""
            return []

        def build_extensions(self) -> None:
            wanted, built = self.extensions, []
            for ext in wanted:
                self.extensions = [ext]
                what = "CUDA" if ext.name.endswith("_cuda") else "CPU"
                try:
                    if what == "CUDA":
                        ext.extra_objects = [
                            compile_cuda(source, self.build_temp) for source in sources_of("cuda/*.cu")
                        ]
                        ext.extra_link_args = cuda_runtime()
                    super().build_extensions()
                    built.append(ext)
                except (Exception, SystemExit) as error:
                    say(what, str(error).strip().partition("\n")[0] or type(error).__name__)
            self.extensions = built

    commands["build_ext"] = BuildEach

modules = extensions()
setup(
    ext_modules=modules,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if modules else {},
)
