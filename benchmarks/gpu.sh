#!/usr/bin/env bash
# What to run on a CUDA machine, in stages of under eight minutes:
#
#   bash benchmarks/gpu.sh STAGE|all [--dry-run]
#
# Needs python with torch, transformers, numpy and pytest, and nothing else: no installation, no other package, no
# network. Results go to $OUT (default ./out), at most eight flat files, appended to and flushed row by row, so that a
# run cut short leaves what it found: stages.jsonl (the machine, then a row a stage), log.txt, tests.jsonl, attention.jsonl,
# decode.jsonl, steps.jsonl. Most telling first: card, steps, attention.
# --dry-run walks through the stages on the CPU at their smallest, with the packages that are not promised hidden.
#
# A new stage is a function below and its name in STAGES; it runs python by `bare`, takes `$device`, minds `$dry`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STAGES=(card tests_kernels tests_backend tests_decoding attention decode steps steps_medium steps_large)
LIMIT=480 # seconds a stage; what still runs then is stopped, and the stage has failed
PYTHON=${PYTHON:-python3}
OUT=${OUT:-out}

# Those that only a card can pass; then the rest, most of which runs models on whatever device there is.
stage_card() {
    local failed=0
    tests -m gpu tests/kernels tests/backend tests/decoding || failed=1
    tests tests/backend/test_graphs.py || failed=1
    return "$failed"
}
stage_tests_kernels() { tests -m "not slow and not gpu" tests/kernels; }
stage_tests_backend() { tests -m "not slow and not gpu" tests/backend; }
stage_tests_decoding() { tests -m "not slow and not gpu" tests/decoding; }

tests() {
    local code=0 args=("$@" -q -p no:cacheprovider)
    # They run on the CPU anyway; what the dry run adds is that they do with the few packages promised.
    if ((dry)) && [[ $* != *" tests/kernels" ]]; then args+=(--collect-only -q); fi
    bare -m pytest "${args[@]}" | tee "$scratch/part" || code=$?
    row tests.jsonl "tests=$*" "exit=$code" "summary=$(grep . "$scratch/part" | tail -n 1)"
    return "$code"
}

stage_attention() {
    local args=(--device "$device" --json "$OUT/attention.jsonl")
    ((!dry)) || args+=(--quick)
    bare benchmarks/attention.py "${args[@]}"
}

stage_decode() {
    local args=(--device "$device" --cases single,samples,mixed,qwen3 --json "$OUT/decode.jsonl")
    ((!dry)) || args+=(--quick)
    bare benchmarks/decode.py "${args[@]}"
}

# Steps of models of real shape. Compiling transformers for a cell takes up to a minute: what has not begun in time is left out.
stage_steps() { steps 0.6B; }
stage_steps_medium() { steps 1.7B; }
stage_steps_large() { steps 8B; }

steps() {
    local args=(--device "$device" --cases "$1" --seconds 340 --json "$OUT/steps.jsonl")
    ((!dry)) || args+=(--quick)
    bare benchmarks/decode.py "${args[@]}"
}

# Python as the stages are promised it: our code by its files, no plugins, and only the time that is left.
bare() {
    local left=$((started + LIMIT - SECONDS))
    env "PYTHONPATH=$scratch/hidden:$PWD/.link" PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 \
        timeout --kill-after 10 "$((left > 1 ? left : 1))" "$PYTHON" "$@"
}

# row FILE KEY=VALUE...: append one JSON object; values are integers where they can be, else strings.
row() {
    local file=$1
    shift
    "$PYTHON" - "$@" >>"$OUT/$file" <<'PY'
import json, sys
pairs = (argument.split("=", 1) for argument in sys.argv[1:])
print(json.dumps({key: int(value) if value.isdigit() else value for key, value in pairs}))
PY
}

run() {
    local stage=$1 code
    started=$SECONDS
    echo "== $stage"
    set +e # `set -e` would be ignored inside the stage if its status were tested here
    (set -e; "stage_$stage") 2>&1 | tee -a "$OUT/log.txt"
    code=${PIPESTATUS[0]}
    set -e
    row stages.jsonl "stage=$stage" "device=$device" "exit=$code" "seconds=$((SECONDS - started))"
    return "$code"
}

wanted=${1:-}
dry=0 device=cuda
[[ ${2:-} != --dry-run ]] || dry=1 device=cpu
if [[ $wanted == all ]]; then
    set -- "${STAGES[@]}"
elif [[ " ${STAGES[*]} " == *" $wanted "* && -n $wanted ]]; then
    set -- "$wanted"
else
    echo "usage: bash benchmarks/gpu.sh STAGE|all [--dry-run]    stages: ${STAGES[*]}" >&2
    exit 2
fi

mkdir -p "$OUT" .link
OUT=$(cd "$OUT" && pwd)
[[ -e .link/forethought ]] || ln -s .. .link/forethought
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/hidden"
if ((dry)); then
    # A module that is None in sys.modules cannot be imported, and is not found by find_spec either.
    echo 'import sys; sys.modules |= dict.fromkeys(["accelerate", "datasets", "hydra", "hypothesis", "omegaconf"])' \
        >"$scratch/hidden/sitecustomize.py"
fi

started=$SECONDS
bare - >>"$OUT/stages.jsonl" <<'PY'
import json, platform, numpy, torch, transformers
cuda = torch.cuda.is_available()
print(json.dumps({
    "machine": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
    "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
    "transformers": transformers.__version__, "numpy": numpy.__version__,
}))
PY

failed=0
for stage in "$@"; do
    run "$stage" || failed=1
done
exit $failed
