# Chores. `make build` first; every target works in a virtual environment with the extra `dev`.
.PHONY: help build debug test test-all cluster-faults games asan tsan coverage wheels bench bench-train bench-peers pretrained sarsa-seeds study lint types

help:
	@grep -E '^[a-z-]+:.*#' Makefile | sed 's/:.*#/\t/'

build: # compile the kernels in place
	pip install -c constraints.txt -e '.[dev]'

debug: # the same with bounds checks
	FASTRL_DEBUG=1 python setup.py -q build_ext --inplace --force

test: # the tests that a change needs every time, some minutes
	pytest

test-all: # those, and the slow ones: every game, repeated faults, long runs
	pytest -m ''

MINUTES ?= 60
cluster-faults: # two nodes on Ray, and all that breaks there; MINUTES=60 of random kills; needs root
	python tools/cluster_faults.py --minutes $(MINUTES)

games: # every Atari game that EnvPool has, two minutes
	pytest -m '' tests/envs/test_all_games.py

asan: # the replay's tests under AddressSanitizer and UndefinedBehaviorSanitizer (gcc), in build/asan
	tools/instrumented.sh asan

tsan: # its tests of threads under ThreadSanitizer, in build/tsan
	tools/instrumented.sh tsan

coverage: # which lines of the replay its tests run, the kernels' included, in build/coverage; CPython 3.11 or 3.12
	tools/instrumented.sh coverage

wheels: # sdist and a tested wheel for every CPython found here, in dist/
	python tools/wheels.py dist

bench: # all benchmarks, some minutes
	pytest bench/

bench-train: # whole training loops beside Stable-Baselines3 and CleanRL style, about ten minutes; needs the extra `peers`
	python bench/bench_train.py

bench-peers: # the replay beside other people's and beside bare copies, some 20 minutes; needs the extra `peers`
	python bench/bench_replay_peers.py
	python bench/bench_replay_kinds.py

pretrained: # RUN=runs/NAME COMMIT=HASH: make that run's best network the one that ships for its game, some minutes
	python bench/pretrain.py $(RUN) --commit $(COMMIT)

sarsa-seeds: # after how many episodes 1,000 learners solve CartPole: table, CSV and figure, some minutes
	python bench/sarsa_seeds.py

ARMS ?= examples/arms.toml
study: # ARMS=arms.toml: train the arms of a table, one on each core; table, CSV and curves
	python bench/study.py $(ARMS)

lint: # style
	ruff check .
	ruff format --check .

types: # mypy, and the stubs against the compiled modules
	mypy
	mypy tests/helpers/typed_entrance.py
	MYPYPATH=. stubtest --mypy-config-file pyproject.toml fastrl.replay._sum_tree fastrl.replay._ring fastrl.replay._append \
	  fastrl.replay._draw fastrl.replay._sequences fastrl.replay._frames fastrl.dqn._trunk fastrl.dqn._adam
