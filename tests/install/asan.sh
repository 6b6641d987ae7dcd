#!/usr/bin/env bash
# The tests of the ops on a native extension built with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     tests/install/asan.sh [arguments of pytest]        PYTHON names the interpreter (default .venv/bin/python)
#
# The package is copied and built in a temporary folder; the installed one is left as it is. Leaks are not looked for:
# Python itself keeps memory until the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(realpath -s "${PYTHON:-.venv/bin/python}")"
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT

cp -r kernels/maekernels "$build/"
rm -f "$build"/maekernels/_C*.so
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
CFLAGS="$flags" LDFLAGS="$flags" MAEKERNELS_SKIP_CUDA=1 MAX_JOBS="${MAX_JOBS:-2}" PATH="$(dirname "$python"):$PATH" \
    env -C kernels "$python" setup.py -q build_ext --build-lib "$build" --build-temp "$build/temp"

# libstdc++ too: the sanitizer looks for its exceptions when the process starts, before torch has loaded it.
export LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 PYTHONPATH="$build:."
"$python" - "$build" <<'EOF'
import sys
from maekernels import _native
assert not _native.ABSENT, _native.ABSENT
assert _native.__file__.startswith(sys.argv[1])
assert "libasan" in open("/proc/self/maps").read()
EOF
# Tracing is torch's own and calls no other native code.
"$python" -m pytest -q -o "pythonpath=$build ." -p no:cacheprovider tests/ops --ignore tests/ops/test_imports.py \
    --ignore tests/ops/test_info_nce.py -k "not compile and not export and not opcheck and not gradcheck" "$@"
