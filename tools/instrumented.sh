#!/usr/bin/env bash
# The replay's tests on kernels built with instruments, in build/KIND: the working tree keeps its own build.
#   tools/instrumented.sh asan|tsan|coverage [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1
shift
here=$PWD/build/$kind
rm -rf "$here"
mkdir -p "$here"
tar -c --exclude='*.so' --exclude=__pycache__ --exclude=weights \
  csrc fastrl/__init__.py fastrl/base fastrl/replay tests/replay setup.py pyproject.toml README.md LICENSE | tar -x -C "$here"
mkdir "$here/fastrl/dqn" "$here/tests/dqn" # for the learner's kernels, which their tests load without the package
cp tests/dqn/test_*_kernels.py "$here/tests/dqn"
cd "$here"
export PYTHONPATH=$here
# Of setuptools only the kernels are asked for.
build() { env "$@" python setup.py -q build_ext --inplace > build.log 2>&1 || { tail -50 build.log; exit 1; }; }
runtime() { "${CC:-gcc}" -print-file-name="lib$1.so"; }

# An instrument that sees nothing would pass everything: it must report this first, as `said` in the log.
must_report() {
  local said=$1
  python -c "$2" > fault.log 2>&1 && { echo "a fault made for it was not reported"; exit 1; }
  grep -m1 "$said" fault.log || { cat fault.log; exit 1; }
  echo "reported, as it should be; now the tests"
}

case $kind in
  asan)
    build FASTRL_SANITIZE=address,undefined
    # CPython never frees some of what it allocates; what cannot be had is to be refused, as without the instrument.
    export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
    export PYTHONMALLOC=malloc
    LD_PRELOAD="$(runtime asan) $(runtime ubsan)"
    export LD_PRELOAD
    must_report 'ERROR: AddressSanitizer: heap-buffer-overflow' '
import numpy as np
from fastrl.replay import _frames
# Frames no larger than the gap between two pieces of memory: no other piece can lie where this one is read past its end.
_frames.gather(np.zeros((1, 16), np.uint8), np.array([[1]]), np.empty((1, 16), np.uint8), 0, 1)'
    # Reports go past Python, so that pytest must not take the file they go to.
    python -m pytest -q --capture=sys -p no:cacheprovider -m '' tests/replay tests/dqn "$@"
    ;;
  tsan)
    build FASTRL_SANITIZE=thread
    export TSAN_OPTIONS=halt_on_error=1
    LD_PRELOAD=$(runtime tsan)
    export LD_PRELOAD
    python() { setarch "$(uname -m)" -R python "$@"; } # the instrument needs memory where it expects it
    must_report 'WARNING: ThreadSanitizer: data race' '
import threading
import numpy as np
from fastrl.replay import _frames
n = 1 << 12
frames, numbers, out = np.zeros((2, n), np.uint8), np.zeros((n, 1), np.int64), np.empty((n, n), np.uint8)
meeting = threading.Barrier(2)
def work():
    for _ in range(50):
        meeting.wait()
        _frames.gather(frames, numbers, out, 0, n)
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]'
    python -m pytest -q --capture=sys -p no:cacheprovider tests/replay/test_prefetch.py tests/replay/stores/test_copy_threads.py \
      tests/replay/test_many_steps.py::test_rows_read_while_another_thread_adds_are_whole_in_order_and_those_of_the_call \
      tests/replay/saves/test_replay_folder.py::test_rows_may_be_added_while_another_thread_flushes "$@"
    ;;
  coverage)
    build FASTRL_COVERAGE=1
    export COVERAGE_CORE=ctrace # the only one that plugins work with
    printf '[run]\nbranch = True\nplugins = Cython.Coverage\nsource = fastrl/replay,csrc\n' > .coveragerc
    printf 'concurrency = thread,multiprocessing\nparallel = True\n' >> .coveragerc # forked children count too
    printf '[report]\nshow_missing = True\n' >> .coveragerc
    python -m coverage run -m pytest -q -p no:cacheprovider -m '' tests/replay "$@"
    python -m coverage combine -q
    python -m coverage report
    ;;
  *)
    echo "$kind is none of asan, tsan, coverage" >&2
    exit 2
    ;;
esac
