#!/usr/bin/env bash
# The tests of the repository for the kernel Hub, with Hugging Face's package `kernels`: without it they skip.
#
#     tests/install/hub.sh [arguments of pytest]      PYTHON names the interpreter (default .venv/bin/python)
#
# It goes into an environment of its own on top of the interpreter's (`hub/` beside its `bin/`).
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(realpath -s "${PYTHON:-.venv/bin/python}")"
layer="$(dirname "$(dirname "$python")")/hub"

[ -x "$layer/bin/python" ] || "$python" -m venv "$layer"
"$python" - > "$(echo "$layer"/lib/python3*/site-packages)/base.pth" <<'EOP'
import site
print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")
EOP
"$layer/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt kernels
DIFFMAVIL_REQUIRE=kernels OMP_NUM_THREADS=1 "$layer/bin/python" -m pytest tests/packages/test_kernel_hub.py "$@"
