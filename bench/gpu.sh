#!/usr/bin/env bash
# What a CUDA machine has to answer, in stages of less than nine minutes each:
#   bench/gpu.sh build-bench    compile the kernels, run the benches and the tests of the learner
#   bench/gpu.sh train          train breakout until the stage's time is up, save, evaluate
#   bench/gpu.sh continue       go on with that run
# Results as JSON, CSV and pictures go to ${OUT:-out}, runs to ${RUNS:-runs}. No network is needed: python3 must
# find PyTorch, Cython and the packages of the extra `test`, on PYTHONPATH if need be. GAME and SECONDS_TO_TRAIN
# (420) may be set.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:?give a stage: build-bench, train or continue}
out=${OUT:-out}
runs=${RUNS:-runs}
game=${GAME:-breakout}
run=$runs/gpu-$game
mkdir -p "$out"

build() { python3 setup.py -q build_ext --inplace; }

# Train for a while: the first SIGINT saves and leaves in good order.
train() {
  local status=0
  timeout --signal=INT --kill-after=60 "${SECONDS_TO_TRAIN:-420}" python3 -u -m fastrl.train "$@" --device cuda |
    tee -a "$out/train.log" || status=$?
  case $status in 0 | 124 | 130) ;; *) exit "$status" ;; esac
}

results() {
  python3 -m fastrl.evaluate "$run" --episodes 30 --gif "$out/evaluation.gif" | tee "$out/evaluation.txt"
  cp "$run/metrics.csv" "$run/config.json" "$run/versions.json" "$out/"
  [ ! -f "$run/checkpoints/best/weights.safetensors" ] || cp "$run/checkpoints/best/weights.safetensors" "$out/"
}

case $stage in
  build-bench)
    build
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/gpu.txt" || true
    timeout 240 python3 -m pytest -q tests/replay tests/test_learner.py tests/test_network.py -p no:cacheprovider |
      tee "$out/tests.txt" || true
    timeout 280 python3 -m pytest -q bench/bench_learner.py bench/bench_loop.py bench/bench_replay.py \
      -p no:cacheprovider --benchmark-json "$out/benchmarks.json" | tee "$out/benchmarks.txt"
    ;;
  train)
    build
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
