#!/usr/bin/env bash
# Everything worth knowing about a GPU machine, in under 9 minutes, the most important first:
#
#     bench/gpu.sh OUTDIR DATA [--device cpu]
#
# DATA: photographs in class folders (or DATA/train). Each step has a time limit and a process of its own, so that a
# crash or a hang of one does not end the rest. OUTDIR gets eight files: summary.txt says how each step ended.
# PYTHON names an interpreter that has torch, timm and DALI (default python3); rsbdali need not be installed.
set -uo pipefail

[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
out=$1 data=$(realpath "$2") device=cuda
[ "${3:-}" = --device ] && device=${4:?--device wants cpu or cuda}
budget=${BUDGET:-530}
python=${PYTHON:-python3}
repo=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
out=$(realpath "$out")
export XDG_CACHE_HOME=$scratch/cache PYTHONUNBUFFERED=1 COLUMNS=160

# the mapped folders as one package, for a machine where nothing can be installed
mkdir -p "$scratch/site/rsbdali"
ln -s "$repo"/rsbdali/* "$repo/pipelines" "$repo/recipes" "$repo/bench" "$scratch/site/rsbdali/"
export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}

if [ "$device" = cpu ]; then
    model=test_resnet against=resnet18 batches="64 128" images=512 limits="--seconds 1 --rounds 1" marker="not gpu"
    tests=(tests/test_mix.py)
else
    model=resnet50 against=resnet50 batches="512 2048" images=49152 limits="--seconds 3 --rounds 3" marker=gpu
    tests=(tests)
fi

# step NAME LIMIT FILE COMMAND...: run it within its limit and what is left of the budget, output appended to FILE
step() {
    local name=$1 limit=$2 file=$out/$3 left=$((budget - SECONDS)) start=$SECONDS status
    shift 3
    if [ "$left" -lt 15 ]; then
        echo "$name: left out, the time is up" >>"$out/summary.txt"
        return
    fi
    [ "$limit" -gt "$left" ] && limit=$left
    echo "\$ ${*//$scratch/SCRATCH}" >>"$file"
    timeout --kill-after=10 "$limit" "$@" >>"$file" 2>&1 </dev/null
    status=$?
    echo "$name: status $status, $((SECONDS - start)) s of $limit" | tee -a "$out/summary.txt"
}

rsbdali=("$python" -m rsbdali)
bench=("${rsbdali[@]}" bench-loader --data "$data" --device "$device" $limits)
: >"$out/summary.txt"
step doctor 90 checks.txt "${rsbdali[@]}" doctor
cd "$repo" || exit
step tests 110 checks.txt "$python" -m pytest -q -p no:cacheprovider --continue-on-collection-errors -m "$marker" "${tests[@]}"
cd "$scratch" || exit
step peers 110 bench.txt "${bench[@]}" --recipe a3 --peers timm --against "$against" \
    --json "$out/bench.json" --report "$out/bench.html"
step material 60 train.txt "$python" -m rsbdali.bench.material "$data" "$scratch/data" "$images"
for batch in $batches; do
    step "train, batch $batch" 100 train.txt "${rsbdali[@]}" train --recipe a3 --data "$scratch/data" \
        --device "$device" --output "$scratch/output" --experiment "batch-$batch" --set "model=$model" \
        --set mix_groups=1 --set "global_batch_size=$batch" --set epochs=2 --set warmup_epochs=1 --set log_interval=10
done
step stages 150 bench.txt "${bench[@]}" --recipe a3 --stages --rounds 1 --json "$out/stages.json"
step repeats 70 bench.txt "${bench[@]}" --recipe a1 --set aug_repeats_mode=local --json "$out/repeats.json"
step "decode modes" 90 bench.txt "$python" -m rsbdali.bench.decode_modes "$data" --device "$device" --seconds 1
