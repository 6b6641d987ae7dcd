#!/usr/bin/env bash
# The suite beside another torch: `make test-versions TORCH=2.15.0`, in an environment of its own, .venv-2.15.0.
#
#     tests/install/versions.sh 2.15.0     BUILDER names an interpreter with the installed project (default
#                                          .venv/bin/python), PYTHON the one for the new environment (default python3)
#
# pip chooses everything else, as for someone who installs the package today: triton is the one that torch asks for, the
# others are the newest in our ranges (PyAV 19 needs Python 3.12). The native kernels are first those of the wheel that
# BUILDER makes on its torch, then compiled on this one. torch's CUDA builds take several gigabytes.
set -euo pipefail
cd "$(dirname "$0")/../.."
torch="${1:?which torch? for example: make test-versions TORCH=2.15.0}"
builder="$(realpath -s "${BUILDER:-.venv/bin/python}")"
venv="$PWD/.venv-$torch"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export MAX_JOBS="${MAX_JOBS:-2}" MAEKERNELS_SKIP_CUDA=1 OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The tests look for the real clips beside the project; the copy lies elsewhere.
export DIFFMAVIL_MEDIA="${DIFFMAVIL_MEDIA:-$(dirname "$PWD")/shared/media}"
# A copy of what is tracked: it gets the extension of a wheel, that of `make install` stays where it is.
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work"
cd "$work"
echo "torch==$torch" > constraints.txt
case "$torch" in 2.1[123].*) echo 'numpy<2.4' >> constraints.txt ;; esac # triton 3.6 and 3.7 interpret kernels with no later one
export PIP_CONSTRAINT="$work/constraints.txt"

# native NAME INTERPRETER: build the wheels, and put the extension under the tests.
native() {
    rm -rf kernels/build kernels/maekernels/*.so
    env -u PIP_CONSTRAINT "$2" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/$1" ./kernels .
    "$2" -m zipfile -e "$work/$1"/maekernels-*.whl "$work/$1/unpacked"
    cp "$work/$1"/unpacked/maekernels/*.so kernels/maekernels/
}

echo "== the wheel, built on torch $("$builder" -c 'import torch; print(torch.__version__)')"
native elsewhere "$builder"
wheels=("$work"/elsewhere/maekernels-*.whl "$work"/elsewhere/diffmavil-*.whl)

echo "== torch $torch in $venv"
test -x "$venv/bin/python" || "${PYTHON:-python3}" -m venv "$venv"
python="$venv/bin/python"
"$python" -m pip install --quiet "torch==$torch" setuptools wheel ninja
"$python" -m pip install --quiet --upgrade --upgrade-strategy eager "${wheels[0]}" "${wheels[1]}[train,dev]"
"$python" -m pip install --quiet --force-reinstall --no-deps "${wheels[@]}"
"$python" -m pip check
"$python" --version
"$python" -m pip list --format freeze | grep -iE '^(torch|triton|av|numpy|torchaudio|torchmetrics|torchcodec)=='
(cd / && "$python" -W error -c 'from maekernels import _native; assert not _native.ABSENT, _native.ABSENT')

status=0
run() {
    echo "== $1"
    shift
    env "$@" || status=1
}
run "plain" "$python" -m pytest -q -n 2 --dist loadfile
run "interpreter" TRITON_INTERPRET=1 "$python" -m pytest -q tests/interpreter
run "ahead of time" MAEKERNELS_AOT=1 "$python" -m pytest -q -n 2 tests/aot

echo "== the ops, compiled on torch $torch"
native here "$python"
run "ops" "$python" -m pytest -q -n 2 --dist loadfile tests/ops
exit $status
