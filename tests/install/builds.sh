#!/usr/bin/env bash
# The ways to build maekernels: each must end with a package that imports, with native kernels where they can be; and what
# is published, installed into an environment that has nothing.
#
#     tests/install/builds.sh        PYTHON names an interpreter with the installed project (default .venv/bin/python)
#     OLD_TORCH=/path/to/python tests/install/builds.sh        also load the wheel there, beside an older torch
#
# The isolated build and the empty environment download torch (constraints.txt); the others reuse what is installed.
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

echo "== what is published"
PYTHON="$python" .ci/wheel "$work/dist"

echo "== an empty environment"
"$python" -m venv empty
empty="$work/empty/bin/python"
"$empty" -m pip install --quiet "$work"/dist/maekernels-*.whl
uses "$work/empty" "$empty" native ""
(cd / && "$empty" -m maekernels)
"$empty" -c 'import importlib.util as u; found = [n for n in ("numpy", "einops") if u.find_spec(n)]; assert not found, found'
# diffmavil asks for it, and gets it without an index.
"$empty" -m pip install --quiet --no-deps "$work"/dist/diffmavil-*.whl
"$empty" -m pip check

wheel isolated-from-sdist native "$work"/dist/maekernels-*.tar.gz
if [ -n "${OLD_TORCH:-}" ]; then uses "$work/isolated-from-sdist/unpacked" "$OLD_TORCH" native "$work/isolated-from-sdist/unpacked"; fi

MAEKERNELS_SKIP_CPU=1 wheel skipped torch --no-build-isolation ./kernels

rm -rf kernels/build
CC=false CXX=false wheel no-compiler torch --no-build-isolation ./kernels
grep -q "the native CPU kernels are not built" "$work/no-compiler.log"

rm -rf kernels/build
CFLAGS="-include missing.h" wheel failing-compile torch --no-build-isolation ./kernels
grep -q "the native CPU kernels are not built" "$work/failing-compile.log"

echo "== editable"
rm -rf kernels/build
"$clean" -m pip install --quiet --no-deps --no-build-isolation -e kernels -e .
uses "$work/kernels" "$clean" native ""
(cd / && "$clean" -c 'import diffmavil; assert diffmavil.__file__.startswith("'"$work"'"), diffmavil.__file__')
