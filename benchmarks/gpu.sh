#!/usr/bin/env bash
# On a machine with a GPU: are the ops right, and then, how fast. In stages, each of which ends within 10 minutes.
#
#     benchmarks/gpu.sh STAGE...               results go to $OUT (default benchmarks/results)
#     benchmarks/gpu.sh --rehearse STAGE...    the same steps, short, on a CPU: what can fail without a GPU fails here
#
#     correctness    builds csrc in place; every op against float64, opcheck, compile, graphs; a training as on a CPU
#     sanitize       compute-sanitizer on every kernel, where it is installed
#     kernels        each op against the limits of the device, eager and compiled code, and beside row ops of other
#                    packages; pictures
#     step           the training step technique by technique, 8 and 16 frames; a profile with its gaps
#     data           decoders and loaders
#     peers          a step of transformers' ViTMAE and VideoMAE, patched and not, eager and compiled
#     train          short pretrainings: probe accuracy, and the hours that AudioSet would take
#     all            all of them, in this order
#
# Runs from source and needs no network: python3 (PYTHON=... names another) with the packages of the extras train, gpu
# and peers, pytest and pytest-timeout; setuptools 77 and nvcc to build csrc; if you like liger-kernel and quack-kernels,
# whose row ops then stand beside ours. Where transformers or one of those two is lacking, a line says so, and what needs
# it is left out. PYTHONPATH is kept, for packages that were carried there. BUDGET: seconds for all of it (530 for each
# stage); each step gets the share of what is left that its own seconds are of those still to come, so what one does not
# need the next ones have. TOOLS: of compute-sanitizer. BENCHMARK_COMMIT: the commit, and needed, where the copy has no
# git. In an OUT that was given a run leaves at most 8 files, as some machines bring no more back: what is over goes
# into one archive. Exit code 0 only if every step was right; a step that failed does not keep the next from running,
# and what it had measured when its time was up is kept, since the machine is costly.
set -euo pipefail
cd "$(dirname "$0")/.."

every=(correctness sanitize kernels step data peers train)
rehearse=0
stages=()
for argument in "$@"; do
    case "$argument" in
        --rehearse) rehearse=1 ;;
        all) stages+=("${every[@]}") ;;
        *)
            if [[ " ${every[*]} " != *" $argument "* ]]; then
                echo "gpu.sh: unknown stage '$argument'; allowed are ${every[*]}, all, and --rehearse" >&2
                exit 2
            fi
            stages+=("$argument")
            ;;
    esac
done
if [ "${#stages[@]}" = 0 ]; then
    echo "gpu.sh: no stage; allowed are ${every[*]}, all" >&2
    exit 2
fi
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
python="$(realpath -s "$(command -v "$python")")" # one step runs in another folder
export PYTHONPATH="$PWD/kernels:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
touch "$scratch/begin"
given="${OUT:-}"
if [ "$rehearse" = 1 ]; then
    OUT="${OUT:-$(mktemp -d)}"
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: $python sees no CUDA device here. --rehearse goes through the steps on a CPU." >&2
    exit 2
fi
if [ -z "${BENCHMARK_COMMIT:-}" ] && ! git rev-parse -q --verify HEAD > /dev/null 2>&1; then
    echo "gpu.sh: no git here tells the commit of what is measured: name it in BENCHMARK_COMMIT" >&2
    exit 2
fi
OUT="${OUT:-benchmarks/results}"
mkdir -p "$OUT"
deadline=$((SECONDS + ${BUDGET:-530 * ${#stages[@]}}))

steps=()
to_come=0
# add_step NAME SECONDS COMMAND...: of the stage. Steps begin when all are known, to share the time.
add_step() {
    steps+=("$(printf '%q ' "$stage" "$@")")
    to_come=$((to_come + $2))
}

failed=()
# run_step STAGE NAME SECONDS COMMAND...: within its share of the time that is left; output goes to the stage's log.
run_step() {
    local stage=$1 name=$2 share=$3 left=$((deadline - SECONDS)) code=0 begin=$SECONDS log="$OUT/$1.log" most
    shift 3
    most=$((share * left / to_come))
    to_come=$((to_come - share))
    if [ "$left" -lt 5 ]; then
        echo "=== $stage: $name: no time left" | tee -a "$log"
        failed+=("$stage, $name: not run")
        return
    fi
    if [ "$most" -lt 5 ]; then most=5; fi # timeout takes 0 for no limit
    echo "=== $stage: $name, at most $most s" | tee -a "$log"
    timeout -k 10 "$most" "$@" 2>&1 | tee -a "$log" || code=$?
    echo "=== $stage: $name took $((SECONDS - begin)) s" | tee -a "$log"
    if [ "$code" = 124 ] || [ "$code" = 137 ]; then
        failed+=("$stage, $name: stopped after its time")
    elif [ "$code" != 0 ]; then
        failed+=("$stage, $name: exit code $code")
    fi
}

# pack: of more than 8 files of this run, those after the seventh go into an archive: lines and logs stay first.
pack() {
    local files=() name file archive
    for name in '*.jsonl' '*.log' '*.png' '*.gz'; do
        while IFS= read -r file; do files+=("$file"); done < <(
            find "$OUT" -maxdepth 1 -name "$name" -newer "$scratch/begin" -printf '%f\n' | sort
        )
    done
    if [ "${#files[@]}" -gt 8 ]; then
        archive="rest-$(IFS=-; echo "${stages[*]}").tar.gz"
        tar -C "$OUT" -czf "$OUT/$archive" --remove-files "${files[@]:7}"
        echo "=== ${#files[@]} files: $archive has ${files[*]:7}"
    fi
    find "$OUT" -maxdepth 1 -newer "$scratch/begin" -size +16384k -printf '=== %f is over 16 MiB: may not come back\n'
}

# Warnings of another torch or triton than CI's are shown, not fatal.
tests=("$python" -m pytest -q -p no:cacheprovider -W default)
# Names and errors as they come: what is stopped after its time tells how far it was.
on_gpu=(env OMP_NUM_THREADS=2 "${tests[@]}" -vv --tb=short --timeout=150)
cores="$(nproc)"
side_by_side=()
# Kernels are compiled on the host: processes side by side use its cores.
if "$python" -c 'import xdist' 2> /dev/null; then side_by_side=(-n "$((cores < 8 ? cores : 8))"); fi
gpu_tests=(tests/ops/test_gpu.py tests/csrc/test_cuda_gpu.py tests/training/test_step_on_gpu.py tests/data/test_augment.py
    tests/evaluation/test_embedder.py)

correctness() {
    add_step build 200 env -C kernels "$python" setup.py -q build_ext --inplace
    # A build that fails is told and ends well, since maekernels works without it; here it must be there.
    if [ "$rehearse" = 0 ] && command -v nvcc > /dev/null; then
        add_step built 60 "$python" -c 'import sys; from maekernels._native_cuda import native_ops as n; sys.exit(n() is None)'
    fi
    if [ "$rehearse" = 1 ]; then
        add_step tests-gpu 560 env GPU_TESTS_ON=cpu "${tests[@]}" "${side_by_side[@]}" "${gpu_tests[@]}" -m gpu
        add_step tests-cpu 120 "${tests[@]}" tests/ops/test_gather_tokens.py -m "not gpu and not slow"
    else
        add_step tests-gpu 300 "${on_gpu[@]}" "${side_by_side[@]}" "${gpu_tests[@]}" -m gpu
        add_step tests-cpu 120 "${on_gpu[@]}" "${side_by_side[@]}" tests/ops -m "not gpu and not slow"
    fi
}

sanitize() {
    local device=cuda tool
    if [ "$rehearse" = 1 ]; then device=cpu; fi
    # Once alone: compiles the kernels, which would take long under the tool.
    add_step launch 120 "$python" tests/ops/launch_once.py --device "$device"
    if [ "$rehearse" = 1 ]; then return; fi
    if ! command -v compute-sanitizer > /dev/null; then
        echo "compute-sanitizer is not installed: kernels were not watched" | tee -a "$log"
        return
    fi
    for tool in ${TOOLS:-memcheck racecheck synccheck initcheck}; do
        add_step "$tool" 130 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" tests/ops/launch_once.py
    done
}

kernels() {
    local run=("$python" benchmarks/kernels.py) results="$OUT/kernels-cuda.jsonl" case=base-16-frames
    if [ "$rehearse" = 1 ]; then
        run+=(--device cpu --seconds 0.1)
        results="$OUT/kernels-rehearsal.jsonl" case=tiny
        add_step kernels 240 "${run[@]}" --case tiny --batch 2 --json "$results"
    else
        run+=(--device cuda)
        rm -f "$results"
        # Each op is compiled and checked before it is timed, and its rows are written then.
        add_step kernels 300 "${run[@]}" --seconds 0.3 --json "$results"
        # Compiling every reference takes seconds each: two cases, measured again beside the others.
        add_step kernels-compiled 170 "${run[@]}" --seconds 0.3 --compile --case "$case" --case base-audio \
            --json "$results"
    fi
    add_step plot 60 "$python" benchmarks/plot.py "$results" --case "$case"
}

step() {
    local run=("$python" benchmarks/step.py) profile=("$python" benchmarks/profile_step.py) all=(--compile)
    if [ "$rehearse" = 1 ]; then
        run+=(--device cpu --batch 2 --levels 1 --seconds 1 --json "$OUT/step-rehearsal.jsonl")
        add_step table 200 "${run[@]}" --plot "$OUT/step-rehearsal.png"
        # Without the peers: compiling a whole model of theirs for a CPU takes minutes.
        add_step compiled 400 "${run[@]}" "${all[@]}" --no-peers
        add_step profile 100 "${profile[@]}" --device cpu --batch 2 --json "$OUT/profile-rehearsal.jsonl"
        return
    fi
    # Transformers' models have a stage of their own; of the compiler, one level of the curriculum is enough.
    run+=(--device cuda --no-peers --cuda-graph)
    profile+=(--device cuda --frames 8 --json "$OUT/profile-cuda.jsonl")
    rm -f "$OUT"/step-cuda*.jsonl "$OUT/profile-cuda.jsonl"
    add_step 8-frames 150 "${run[@]}" --frames 8 --batch 64 --levels 2 --seconds 20 --json "$OUT/step-cuda.jsonl" \
        --plot "$OUT/step-cuda-8-frames.png"
    add_step profile 80 "${profile[@]}" --trace "$OUT/step-eager.json.gz"
    add_step 16-frames 130 "${run[@]}" --frames 16 --batch 64 --levels 1 --seconds 15 --json "$OUT/step-cuda.jsonl" \
        --plot "$OUT/step-cuda-16-frames.png"
    add_step compiled 160 "${run[@]}" "${all[@]}" --frames 8 --batch 64 --levels 1 --seconds 15 \
        --json "$OUT/step-cuda-compiled.jsonl"
}

data() {
    if [ "$rehearse" = 1 ]; then
        add_step data 300 "$python" benchmarks/data.py --clips 2 --seconds 0.5 --workers 1 \
            --json "$OUT/data-rehearsal.jsonl"
    else
        rm -f "$OUT/data-cuda.jsonl"
        add_step data 400 "$python" benchmarks/data.py --json "$OUT/data-cuda.jsonl"
    fi
}

peers() {
    local run=("$python" benchmarks/peers.py) results="$OUT/peers-cuda.jsonl"
    if ! "$python" -W ignore -c 'from benchmarks.peer_models import load_transformers; load_transformers()' \
        > "$scratch/peers" 2>&1; then
        echo "transformers cannot be used: no peer was measured ($(tail -n 1 "$scratch/peers"))" | tee -a "$log"
        return
    fi
    if [ "$rehearse" = 1 ]; then
        add_step peers 240 "${run[@]}" --device cpu --threads 1 --size tiny --batch 2 --seconds 0.5 \
            --json "$OUT/peers-rehearsal.jsonl"
        return
    fi
    rm -f "$results"
    # Compiling both versions of both models takes longer than measuring them.
    add_step peers 180 "${run[@]}" --device cuda --seconds 25 --json "$results"
    add_step peers-compiled 380 "${run[@]}" --device cuda --seconds 25 --compile --json "$results"
}

train() {
    local run=("$python" benchmarks/pretrain.py --cache "$scratch/cache")
    if [ "$rehearse" = 1 ]; then
        run+=(--size tiny --pixels 32 --frames 4 --batch 8 --samples 64 --clips 24 --workers 0)
        add_step train 400 "${run[@]}" --json "$OUT/pretrain-rehearsal.jsonl"
    else
        rm -f "$OUT/pretrain-cuda.jsonl"
        add_step train 560 "${run[@]}" --json "$OUT/pretrain-cuda.jsonl"
    fi
}

"$python" -c 'import torch; print(torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())'
for stage in "${stages[@]}"; do
    log="$OUT/$stage.log"
    : > "$log"
    "$stage"
done
for step in "${steps[@]}"; do eval "run_step $step"; done
if [ -n "$given" ]; then pack; fi

echo "=== results in $OUT"
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
