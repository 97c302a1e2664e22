#!/usr/bin/env bash
# What a CUDA machine has to answer, in stages of less than nine minutes each:
#   bench/gpu.sh build-bench    compile the kernels, draw a trace, run what benches and tests say of a GPU
#   bench/gpu.sh train          train a game for a while, save, evaluate
#   bench/gpu.sh continue       go on with that run
# Results as JSON, CSV and pictures go to ${OUT:-out}, runs to ${RUNS:-runs}. No network is needed: python3 must
# find PyTorch, Cython and the packages of the extra `test`, on PYTHONPATH if need be. GAME (breakout) and
# SECONDS_TO_TRAIN (330) may be set.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:?give a stage: build-bench, train or continue}
out=${OUT:-out}
runs=${RUNS:-runs}
game=${GAME:-breakout}
run=$runs/gpu-$game
mkdir -p "$out"

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # fastrl is not installed

build() { python3 setup.py -q build_ext --inplace --parallel "$(nproc)"; }

# Train for a while: SIGINT saves and leaves in good order, for which a full replay may take its time.
train() {
  local status=0
  timeout --foreground --signal=INT --kill-after=120 "${SECONDS_TO_TRAIN:-330}" \
    python3 -u -m fastrl.train "$@" --device cuda > >(tee -a "$out/train.log") 2>&1 || status=$?
  case $status in 0 | 124 | 130) ;; *) exit "$status" ;; esac
}

results() {
  cp "$run/metrics.csv" "$run/config.json" "$run/versions.json" "$out/"
  cp "$(ls -t "$run"/pictures/*.gif | head -1)" "$out/agent.gif" || true
  [ ! -f "$run/checkpoints/best/weights.safetensors" ] || cp "$run/checkpoints/best/weights.safetensors" "$out/"
  timeout 60 python3 -m fastrl.evaluate "$run" --episodes 30 --json "$out/evaluation.json" --out "$out/evaluation.gif" ||
    echo "the evaluation did not end in its minute; the run's own are in metrics.csv"
}

build
case $stage in
  build-bench)
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/gpu.txt" || true
    # What matters most comes first. Each part is a process that writes files of its own, so that none is lost with a
    # later one; what fails or takes too long is noted, and the rest still runs. The trace compiles what stages and loop
    # then find in Inductor's cache.
    part() { # name, seconds, command
      timeout --kill-after=10 "$2" "${@:3}" 2>&1 | tee "$out/$1.txt" || failed="$failed $1"
    }
    check() { part "$1" "$2" python3 -m pytest -q -p no:cacheprovider "${@:3}"; }
    bench() { check "$1" "$2" "${@:3}" --benchmark-json "$out/$1.json"; }
    failed=
    part trace 90 python3 bench/trace.py "$out/trace.json.gz" --summary "$out/trace-summary.json"
    bench stages 70 bench/bench_stages.py
    bench loop 80 bench/bench_loop.py
    check tests 120 tests/dqn/test_learner.py tests/dqn/test_fast_path.py tests/dqn/device
    bench act 40 bench/bench_learner.py -k "bench_act and cuda and nature"
    bench update 60 bench/bench_learner.py -k "bench_update and cuda and nature and compiled"
    bench eager 40 bench/bench_learner.py -k "bench_update and cuda and nature and eager"
    [ -z "$failed" ] || { echo "failed or too slow:$failed" >&2; exit 1; }
    ;;
  train)
    train "$game" --runs-dir "$runs" --name "gpu-$game"
    results
    ;;
  continue)
    train --resume "$run"
    results
    ;;
  *)
    echo "bench/gpu.sh: unknown stage '$stage'; give build-bench, train or continue" >&2
    exit 2
    ;;
esac
