#!/usr/bin/env bash
# Everything worth knowing about a GPU machine, in under 9 minutes, what decides most first:
#
#     bench/gpu.sh OUTDIR DATA [--device cpu]
#
# DATA: photographs in class folders (or DATA/train). Each step has a time limit and a process of its own, so that a
# crash or a hang of one does not end the rest. OUTDIR gets six files: summary.txt says how each step ended, and the
# figures against their aims; records.json holds the measurements, also of steps that were cut off. --device cpu is a
# dry run of every step on small sizes.
# PYTHON names an interpreter that has torch, timm, DALI, numba and, for the tests, pytest and hypothesis (default
# python3); rsbdali need not be installed.
# STEPS names the steps to run (default: all), BUDGET the seconds for all of them (default 510).
set -uo pipefail
ulimit -c 0 # a crash is a line in summary.txt, not a file of some GB

[ $# -ge 2 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
out=$1 data=$(realpath "$2") device=cuda
[ "${3:-}" = --device ] && device=${4:?--device wants cpu or cuda}
patience=1
[ "$device" = cpu ] && patience=4 # a dry run is about what runs, not how fast
budget=${BUDGET:-$((510 * patience))}
python=${PYTHON:-python3}
steps=${STEPS:-all}
repo=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
mkdir -p "$out" "$scratch/records" "$scratch/output"
out=$(realpath "$out")
export XDG_CACHE_HOME=$scratch/cache PYTHONUNBUFFERED=1 COLUMNS=160

# The mapped folders as one package, for a machine where nothing can be installed. The working folder must not come
# before it: in the repository's, `import rsbdali` would find the package without them.
mkdir -p "$scratch/site/rsbdali"
ln -s "$repo"/rsbdali/* "$repo/pipelines" "$repo/recipes" "$repo/bench" "$scratch/site/rsbdali/"
export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

# however this ends, what was measured is gathered
child=
finish() {
    local status=$?
    if [ -n "$child" ]; then
        kill "$child"
        wait "$child"
    fi
    "$python" -m rsbdali.bench.summary "$scratch/records" "$scratch/output" "$out/records.json" 2>&1 |
        tee -a "$out/summary.txt"
    echo "$SECONDS s in all" | tee -a "$out/summary.txt"
    rm -rf "$scratch"
    exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

first=("$repo"/tests/test_{parity*,*kernels,mix,bce,ops_[!k]*}.py)
if [ "$device" = cpu ]; then
    small=(--set model=test_resnet --set img_size=64 --set test_img_size=64)
    model=test_resnet rows=8 batch=64 images=512 limits="--seconds 0.1 --rounds 1" marker="not gpu" times=3
    dtypes="float32" # CPUs compute in 16 bits by detours
    first=("$repo/tests/test_mix.py") rest=("$repo/tests/test_precision.py")
    compile=() sizes=(--rows 4 --size 64 --model test_resnet) windows="--seconds 0.1 --rounds 1"
    export OMP_NUM_THREADS=1 # idle threads of OpenMP spin, and would starve the others
else
    small=()
    model=resnet50 rows=512 batch=512 images=49152 limits="--seconds 1.5 --rounds 3" marker=gpu times=50
    dtypes="bfloat16 float16" # the native type first
    case $(timeout 60 "$python" -c 'import torch; print(torch.cuda.get_device_capability()[0])') in
        [1-7]) dtypes="float16 bfloat16" ;;
    esac
    rest=("$repo/tests")
    compile=(--torch-compile default --cuda-graph) sizes=() windows="--seconds 2.5 --rounds 2"
fi

# step NAME LIMIT FILE COMMAND...: run it within its limit and what is left of the budget, output appended to FILE
step() {
    local name=$1 limit=$((patience * $2)) file=$out/$3 left=$((budget - SECONDS)) start=$SECONDS status
    shift 3
    [[ $steps == all || " $steps " == *" ${name%% *} "* ]] || return
    if [ "$left" -lt 15 ]; then
        echo "$name: left out, the time is up" | tee -a "$out/summary.txt"
        return
    fi
    [ "$limit" -gt "$left" ] && limit=$left
    echo "\$ ${*//$scratch/SCRATCH}" >>"$file"
    # in the background, since a signal to this script would wait for a command in front
    timeout --kill-after=10 "$limit" "$@" >>"$file" 2>&1 </dev/null &
    child=$!
    wait "$child"
    status=$?
    child=
    echo "$name: status $status, $((SECONDS - start)) s of $limit" | tee -a "$out/summary.txt"
}

record=$scratch/records
rsbdali=("$python" -m rsbdali)
tests=("$python" -m pytest -q -p no:cacheprovider --continue-on-collection-errors -o filterwarnings=default -m "$marker")
kernels=("$python" -m rsbdali.bench.kernels --device "$device")
loader=("${rsbdali[@]}" bench-loader --data "$data" --device "$device" --batch-size "$rows" $limits)
train_step=("${rsbdali[@]}" bench-step --recipe a3 --device "$device" --peers timm --batch-size "$rows" $limits)
: >"$out/summary.txt"
step doctor 60 checks.txt "${rsbdali[@]}" doctor
cd "$repo" || exit
step parity 110 checks.txt "${tests[@]}" "${first[@]}"
cd "$scratch" || exit
step randaugment 45 bench.txt "${kernels[@]}" "${sizes[@]}" --only randaugment --json "$record/randaugment.json"
step modes 75 bench.txt "$python" -m rsbdali.bench.decode_modes "$data" --device "$device" --batch-size "$rows" \
    $limits --json "$record/modes.json"
step share 90 bench.txt "$python" -m rsbdali.bench.gpu_share "$data" --device "$device" --batch-size "$rows" $windows \
    "${small[@]}" --json "$record/gpu_share.json"
step same 45 bench.txt "$python" -m rsbdali.bench.same_plan "$data" --device "$device" --batch-size "$rows" \
    --times "$times" "${small[@]}" --json "$record/same_plan.json"
if [ "$device" = cpu ]; then
    step sanitizer 90 checks.txt "${kernels[@]}" --once --rows 64 --size 33 --model test_resnet
elif command -v compute-sanitizer >/dev/null; then
    # without torch's cache of memory the sanitizer sees where each tensor ends
    step sanitizer 90 checks.txt env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 \
        "${kernels[@]}" --once --rows 64 --size 33 --model test_resnet
else
    echo "sanitizer: not run, there is no compute-sanitizer" | tee -a "$out/summary.txt"
fi
for dtype in $dtypes; do
    step "step $dtype" 150 bench.txt "${train_step[@]}" "${small[@]}" --set "amp_dtype=$dtype" "${compile[@]}" \
        --json "$record/step-$dtype.json"
    compile=() # for the native type alone: it takes a minute
done
step loader 90 bench.txt "${loader[@]}" --recipe a3 --peers timm,dali-exact --against "$model" "${small[@]}" \
    --json "$record/loader.json" --report "$out/bench.html"
step "train material" 60 train.txt "$python" -m rsbdali.bench.material "$data" "$scratch/data" "$images"
for dtype in $dtypes; do
    step "train $dtype" 70 train.txt "${rsbdali[@]}" train --recipe a3 --data "$scratch/data" --device "$device" \
        --output "$scratch/output" --experiment "$dtype" "${small[@]}" --set "amp_dtype=$dtype" --set mix_groups=1 \
        --set "global_batch_size=$batch" --set epochs=2 --set warmup_epochs=1 --set log_interval=10
done
step kernels 60 bench.txt "${kernels[@]}" "${sizes[@]}" --json "$record/kernels.json"
step stages 120 bench.txt "${loader[@]}" --recipe a3 --stages --rounds 1 "${small[@]}" --json "$record/stages.json"
step repeats 60 bench.txt "${loader[@]}" --recipe a1 --set aug_repeats_mode=decode_once "${small[@]}" \
    --json "$record/repeats.json"
cd "$repo" || exit
step tests 100 checks.txt "${tests[@]}" "${rest[@]}" "${first[@]/#/--ignore=}"
exit 0 # a step that failed says so in summary.txt
