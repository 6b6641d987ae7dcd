#!/usr/bin/env bash
# On a machine with a GPU: are the ops right, and then, how fast. Runs from source, ends within 10 minutes.
#
#     benchmarks/gpu.sh               results go to $OUT (default benchmarks/results)
#     benchmarks/gpu.sh --rehearse    the same steps, short, on a CPU: what can fail without a GPU fails here
#
# Needs python3 with torch, triton, rich, matplotlib, pytest and pytest-timeout (PYTHON=... names another), no network.
# BUDGET: seconds for everything (570). BENCHMARK_COMMIT: the commit, where the copy has no git. Exit code 0 only if
# every step was right; a step that failed does not keep the next from running, since the machine is costly.
set -euo pipefail
cd "$(dirname "$0")/.."

rehearse=0
case "${1:-}" in
    "") ;;
    --rehearse) rehearse=1 ;;
    *) echo "gpu.sh: unknown argument '$1'; allowed is --rehearse" >&2; exit 2 ;;
esac
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
export PYTHONPATH=kernels:. PYTHONUNBUFFERED=1
deadline=$((SECONDS + ${BUDGET:-570}))

has_gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }
if [ "$rehearse" = 1 ]; then
    OUT="${OUT:-$(mktemp -d)}"
elif ! has_gpu; then
    echo "gpu.sh: $python sees no CUDA device here. benchmarks/gpu.sh --rehearse goes through the steps on a CPU." >&2
    exit 2
fi
OUT="${OUT:-benchmarks/results}"
mkdir -p "$OUT"

failed=()
# step NAME SECONDS COMMAND...: runs it within its time and the deadline, keeps its output in $OUT/NAME.log.
step() {
    local name=$1 most=$2 left=$((deadline - SECONDS)) code=0
    shift 2
    echo "=== $name"
    if [ "$left" -lt 5 ]; then
        echo "no time left for $name" | tee "$OUT/$name.log"
        failed+=("$name: not run")
        return
    fi
    timeout "$((most < left ? most : left))" "$@" 2>&1 | tee "$OUT/$name.log" || code=$?
    if [ "$code" = 124 ]; then
        failed+=("$name: stopped after its time")
    elif [ "$code" != 0 ]; then
        failed+=("$name: exit code $code")
    fi
}

# Warnings of another torch or triton than CI's are shown, not fatal.
tests=("$python" -m pytest -q -p no:cacheprovider -W default)
kernels=("$python" benchmarks/kernels.py)
if [ "$rehearse" = 1 ]; then
    step tests-cpu 200 "${tests[@]}" tests/ops -m "not gpu and not slow"
    step kernels 120 "${kernels[@]}" --device cpu --case tiny --seconds 0.1 --json "$OUT/kernels-rehearsal.jsonl"
    step plot 60 "$python" benchmarks/plot.py "$OUT/kernels-rehearsal.jsonl" --case tiny
    step step 120 "$python" benchmarks/step.py --device cpu --batch 2 --levels 2 --seconds 1 \
        --json "$OUT/step-rehearsal.jsonl" --plot "$OUT/step-rehearsal.png"
else
    "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
    results="$OUT/kernels-cuda.jsonl"
    rm -f "$results"
    step tests-gpu 160 "${tests[@]}" tests/ops tests/bench -m gpu
    step tests-cpu 50 "${tests[@]}" tests/ops -m "not gpu and not slow" -x
    step kernels 130 "${kernels[@]}" --device cuda --seconds 0.3 --json "$results"
    # Compiling every reference takes seconds each: one case, measured again beside the others.
    step kernels-compiled 150 "${kernels[@]}" --device cuda --compile --case base-16-frames --json "$results"
    step plot 40 "$python" benchmarks/plot.py "$results"
    # The training step, which needs the packages of the extra `train` too.
    step step 120 "$python" benchmarks/step.py --device cuda --levels 4 --seconds 20 \
        --json "$OUT/step-cuda.jsonl" --plot "$OUT/step-cuda.png"
fi

echo "=== results in $OUT"
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
