#!/usr/bin/env bash
# The ways to build the package: each must end with a package that imports, with native kernels where they can be.
#
#     tests/install/builds.sh        PYTHON names an interpreter with the installed project (default .venv/bin/python)
#     OLD_TORCH=/path/to/python tests/install/builds.sh        also load the wheel there, beside an older torch
#
# The isolated build downloads torch (constraints.txt) and compiles everything; the others reuse what is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(realpath -s "${PYTHON:-.venv/bin/python}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export MAX_JOBS="${MAX_JOBS:-2}" MAEKERNELS_SKIP_CUDA=1 PATH="$(dirname "$python"):$PATH"
export PIP_CONSTRAINT="$PWD/constraints.txt" PIP_BUILD_CONSTRAINT="$PWD/constraints.txt" PIP_DISABLE_PIP_VERSION_CHECK=1
site="$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')"

# A copy of what is tracked: builds leave files behind.
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work"
cd "$work"

# torch of the interpreter and nothing else of it: the finder of an editable install would lend its native kernels.
"$python" -m venv --without-pip venv
clean="$work/venv/bin/python"
echo "$site" > "$(echo venv/lib/python3*/site-packages)/torch.pth"

# uses FOLDER INTERPRETER native|torch PYTHONPATH: the package in that folder answers, natively or not.
uses() {
    (cd / && PYTHONPATH="$4" "$2" - "$1" "$3" <<'EOF'
import sys
import maekernels, torch
from maekernels import _native
assert maekernels.__file__.startswith(sys.argv[1]), maekernels.__file__
assert (not _native.ABSENT) == (sys.argv[2] == "native"), _native.ABSENT
for backend in (None, "torch") + (("native",) if sys.argv[2] == "native" else ()):
    ids = maekernels.random_mask(2, 12, 5, seed=1, backend=backend).ids_keep
    assert ids.shape == (2, 5)
out = maekernels.patchify(torch.ones(2, 4, 6), torch.zeros(2, 1, dtype=torch.int32), (2, 2), (0.0,), (1.0,))
assert out.sum() == 8
print(f"ok: {sys.argv[2]}, torch {torch.__version__}")
EOF
    )
}

# wheel NAME native|torch ARGUMENTS...: build one, look inside, use it.
wheel() {
    local name="$1" expected="$2"
    shift 2
    echo "== $name"
    "$python" -m pip wheel --verbose --no-deps --wheel-dir "$work/$name" "$@" > "$work/$name.log" 2>&1 ||
        { cat "$work/$name.log"; return 1; }
    "$python" -m zipfile -e "$work/$name"/*.whl "$work/$name/unpacked"
    uses "$work/$name/unpacked" "$clean" "$expected" "$work/$name/unpacked"
}

echo "== sdist"
"$python" setup.py -q sdist --dist-dir "$work/sdist" > sdist.log 2>&1 || { cat sdist.log; exit 1; }

wheel isolated-from-sdist native "$work"/sdist/*.tar.gz
if [ -n "${OLD_TORCH:-}" ]; then uses "$work/isolated-from-sdist/unpacked" "$OLD_TORCH" native "$work/isolated-from-sdist/unpacked"; fi

MAEKERNELS_SKIP_CPU=1 wheel skipped torch --no-build-isolation .

rm -rf build
CC=false CXX=false wheel no-compiler torch --no-build-isolation .
grep -q "the native CPU kernels are not built" "$work/no-compiler.log"

rm -rf build
CFLAGS="-include missing.h" wheel failing-compile torch --no-build-isolation .
grep -q "the native CPU kernels are not built" "$work/failing-compile.log"

echo "== editable"
rm -rf build
"$clean" -m pip install --quiet --no-deps --no-build-isolation -e .
uses "$work/kernels" "$clean" native ""
