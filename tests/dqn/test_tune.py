"""What a CPU computes with is measured where it is left open, and kept for other runs; else as given, or the rule."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS, with_agent
from fastrl.dqn import race, tune
from fastrl.dqn.device import device
from fastrl.dqn.learner import Learner
from fastrl.dqn.tune import Choice, Measured, Shapes, settle

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPES = Shapes((4, 84, 84), np.uint8, 4)
AUTO = with_agent(PRESETS["cpu"].config, "dueling")
RULE = Choice("bfloat16", 8, "fastrl")
FOUND = Choice("float32", 2, "torch")
FIELDS = ("precision", "torch_threads", "kernels")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight cores with bfloat16 and own kernels; `asked` lists what was measured, `finds` is what that finds."""
    known = SimpleNamespace(bfloat16=True, cores=8, kernels=True, asked=[], finds=Measured(FOUND, "", 1.23))

    def measure(config, shapes, rule, others, threads):
        known.asked.append((rule, list(others), list(threads)))
        return known.finds

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.delenv(tune.SWITCH)
    monkeypatch.setattr(tune, "measure", measure)
    for module in (tune, device):
        monkeypatch.setattr(module, "has_bfloat16", lambda device: known.bfloat16)
    monkeypatch.setattr(tune, "cpu_count", lambda: known.cores)
    fits = lambda config, dtype, device, low: "fast" if known.kernels and device == CPU else None  # noqa: E731
    monkeypatch.setattr(tune, "pick_fast_kernels", fits)
    return known


def chosen(config, **options):
    """Return what stands in the settings, and the words."""
    settled, words = settle(config, SHAPES, CPU, **options)
    assert settled == config.replace(**{name: getattr(settled, name) for name in FIELDS})  # all else stays
    return Choice(*(getattr(settled, name) for name in FIELDS)), words


def test_what_is_left_open_is_measured_and_said(machine):
    assert chosen(AUTO) == (FOUND, " in float32, 2 threads, PyTorch's kernels (measured for 1.2 s)")
    (asked,) = machine.asked
    others = [Choice("float32", 8, "fastrl"), Choice("bfloat16", 8, "torch"), Choice("float32", 8, "torch")]
    assert asked == (RULE, others, [4, 2, 1])


@pytest.mark.parametrize(
    ("given", "others", "threads"),
    [
        ({"precision": "float32"}, [Choice("float32", 8, "torch")], [4, 2, 1]),
        ({"precision": "bfloat16", "kernels": "torch"}, [], [4, 2, 1]),
        ({"torch_threads": 3, "kernels": "fastrl"}, [Choice("float32", 3, "fastrl")], []),
        ({"torch_threads": 3, "precision": "bfloat16"}, [Choice("bfloat16", 3, "torch")], []),
    ],
)
def test_what_is_given_is_not_up_for_choice(machine, given, others, threads):
    chosen(AUTO.replace(**given))
    ((rule, *asked),) = machine.asked
    assert asked == [others, threads]
    assert all(getattr(rule, name) == value for name, value in given.items())


def test_nothing_is_measured_where_all_is_given_or_there_is_one_way(machine):
    given = {"precision": "float32", "torch_threads": 1, "kernels": "torch"}
    assert chosen(AUTO.replace(**given)) == (Choice("float32", 1, "torch"), " in float32, 1 thread, PyTorch's kernels")
    machine.cores, machine.bfloat16, machine.kernels = 1, False, False
    assert chosen(AUTO)[0] == Choice("float32", 1, "torch")
    assert not machine.asked


@pytest.mark.parametrize("preset", ["catch", "vector"])
def test_vectors_are_never_measured(machine, preset):
    machine.kernels = False
    config = PRESETS[preset].config
    assert chosen(config) == (Choice("bfloat16", 1, "torch"), " in bfloat16, 1 thread")
    assert chosen(config.replace(torch_threads=0))[0].torch_threads == 8
    assert not machine.asked


def test_a_gpu_keeps_its_settings_as_they_are(machine):
    assert settle(AUTO, SHAPES, GPU) == (AUTO, "")
    assert not machine.asked


def test_emulated_bfloat16_is_never_tried(machine):
    machine.bfloat16 = False
    chosen(AUTO)
    ((rule, others, _),) = machine.asked
    assert {choice.precision for choice in (rule, *others)} == {"float32"}


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(1, []), (2, [1]), (3, [2, 1]), (4, [2, 1]), (6, [4, 2, 1]), (64, [32, 16, 8, 4, 2, 1])],
)
def test_threads_to_try_are_the_powers_of_two_below_the_cores(cores, counts):
    assert tune.thread_counts(cores) == counts


# --- the cache --------------------------------------------------------------------------------------


def test_a_second_run_takes_what_the_first_has_measured(machine):
    chosen(AUTO)
    assert chosen(AUTO.replace(seed=7, total_frames=1)) == (
        FOUND, " in float32, 2 threads, PyTorch's kernels (measured before)",
    )  # fmt: skip
    assert len(machine.asked) == 1


@pytest.mark.parametrize("change", [{"batch_size": 128}, {"trunk": "nature"}, {"double": False}, {"torch_threads": 2}])
def test_other_settings_of_the_update_are_measured_anew(machine, change):
    chosen(AUTO)
    chosen(AUTO.replace(**change))
    assert len(machine.asked) == 2


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("machine", "cores", 4),
        ("machine", "bfloat16", False),
        ("machine", "kernels", False),
        (tune, "processor", lambda: "Z80"),
        (tune, "__version__", "9.9"),
        (torch, "__version__", "9.9"),
    ],
)
def test_another_processor_or_version_measures_anew(machine, monkeypatch, where, name, value):
    chosen(AUTO)
    monkeypatch.setattr(machine if where == "machine" else where, name, value)
    chosen(AUTO)
    assert len(machine.asked) == 2


@pytest.mark.parametrize(
    "shapes", [((1, 84, 84), np.uint8, 4), ((4, 84, 84), np.float32, 4), ((4, 84, 84), np.uint8, 18)]
)
def test_other_observations_or_actions_are_measured_anew(machine, shapes):
    chosen(AUTO)
    settle(AUTO, Shapes(*shapes), CPU)
    assert len(machine.asked) == 2


@pytest.mark.parametrize("doubt", ["on a busy machine", "in uneven turns"])
def test_what_is_in_doubt_is_said_and_not_kept(machine, doubt):
    machine.finds = Measured(FOUND, doubt, 2.0)
    assert chosen(AUTO)[1].endswith(f"(measured for 2.0 s {doubt})")
    chosen(AUTO)
    assert len(machine.asked) == 2


@pytest.mark.parametrize(
    "value",
    [None, 3, [], {}, "float32", dataclasses.asdict(FOUND) | {"torch_threads": 3},
     dataclasses.asdict(FOUND) | {"precision": "float16"}, dataclasses.asdict(FOUND) | {"more": 1}, {"precision": []}],
)  # fmt: skip
def test_a_cached_choice_that_could_not_have_been_measured_is_measured_anew(machine, monkeypatch, value):
    monkeypatch.setattr(tune, "cached", lambda kind, key: value)
    assert chosen(AUTO)[0] == FOUND
    assert len(machine.asked) == 1


def test_a_place_that_takes_no_cache_is_no_obstacle(machine, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [chosen(AUTO)[0] for _ in range(2)] == [FOUND, FOUND]
    assert len(machine.asked) == 2


def test_an_update_too_large_to_measure_goes_by_the_rule(machine, tmp_path):
    machine.finds = None
    assert chosen(AUTO) == (RULE, " in bfloat16, 8 threads, fastrl's kernels")
    assert not (tmp_path / "caches").exists()


def test_the_environment_switches_it_off_or_the_cache_alone(machine, tmp_path, monkeypatch):
    monkeypatch.setenv(tune.SWITCH, "off")
    assert chosen(AUTO) == (RULE, " in bfloat16, 8 threads, fastrl's kernels")
    assert not machine.asked
    monkeypatch.setenv(tune.SWITCH, "always")
    assert [chosen(AUTO)[0] for _ in range(2)] == [FOUND, FOUND]
    assert len(machine.asked) == 2
    assert not (tmp_path / "caches").exists()
    monkeypatch.setenv(tune.SWITCH, "no")
    with pytest.raises(ConfigError, match="FASTRL_TUNE is 'no' in the environment; give cached, always or off, or"):
        chosen(AUTO)


# --- a resume ---------------------------------------------------------------------------------------


def test_a_resume_takes_what_was_chosen(machine):
    config, _ = settle(AUTO, SHAPES, CPU)
    notes = []
    assert settle(config, SHAPES, CPU, earlier=config, notes=notes)[0] == config
    assert (len(machine.asked), notes) == (1, [])


def test_a_resume_that_leaves_something_open_measures_that_alone(machine):
    config, _ = settle(AUTO, SHAPES, CPU)
    chosen(config.replace(precision="auto"), earlier=config)
    rule, others, threads = machine.asked[1]
    assert (rule, others, threads) == (Choice("bfloat16", 2, "torch"), [Choice("float32", 2, "torch")], [])


def test_what_an_older_run_left_open_stays_as_the_rule_had_it(machine):
    assert chosen(AUTO, earlier=AUTO)[0] == RULE
    assert not machine.asked


def test_a_run_that_comes_to_a_weaker_machine_says_so_and_goes_on(machine):
    config, notes = AUTO.replace(**dataclasses.asdict(RULE)), []
    machine.bfloat16, machine.cores, machine.kernels = False, 2, False
    machine.finds = Measured(RULE, "", 1.0)
    settled, _ = settle(config, SHAPES, CPU, earlier=config, notes=notes)
    assert (settled.precision, settled.torch_threads, settled.kernels) == ("bfloat16", 8, "torch")
    assert "only emulates; --precision auto chooses anew" in notes[0]
    assert "has 8 threads, and this process may use 2 cores; --torch-threads 0 chooses anew" in notes[1]


def test_kernels_that_a_gpu_does_not_have_are_no_obstacle_to_a_resume_there(machine):
    config = AUTO.replace(**dataclasses.asdict(RULE))
    assert settle(config, SHAPES, GPU, earlier=config)[0] == config.replace(kernels="auto")


@pytest.mark.parametrize(
    ("changes", "dtype", "words"),
    [
        ({"trunk": "vector"}, np.uint8, "trunk vector"),
        ({}, np.float32, "observations of float32"),
    ],
)
def test_kernels_that_do_not_fit_are_refused_with_the_remedy(changes, dtype, words):
    config = AUTO.replace(kernels="fastrl", precision="float32", compile=False, batch_size=2, hidden=4, **changes)
    with pytest.raises(ConfigError, match=rf"--kernels is 'fastrl', .*{words}.*; give --kernels auto"):
        Learner(config, (4, 84, 84), dtype, 4, CPU, 0)


def test_pytorchs_kernels_are_taken_where_they_are_asked_for():
    config = AUTO.replace(precision="float32", compile=False, batch_size=2, hidden=4, torch_threads=1)
    for kernels, has in (("auto", True), ("fastrl", True), ("torch", False)):
        learner = Learner(config.replace(kernels=kernels), (4, 84, 84), np.uint8, 4, CPU, 0)
        assert (learner._trunk is not None) == has


# --- the measurement itself -------------------------------------------------------------------------

# Rows of the Nature network whose update has 1e9 multiplications and additions, at five forwards of 15.47 million and
# as many passes over 3.29 million parameters, two operations each.
PROBE = int(1e9 / (5 * (15.474688e6 + 2 * 3.292837e6)))
SMALL = AUTO.replace(trunk="minatar", hidden=8, batch_size=4, num_envs=2)
IMAGE = Shapes((2, 10, 10), np.uint8, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_real_measurement_gives_one_of_the_choices_and_leaves_no_trace(monkeypatch, dtype):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    built = []
    monkeypatch.setattr(tune, "Learner", lambda *args: built.append(args) or Learner(*args))
    rule = Choice("float32", 2, "torch")
    others = [Choice("float32", 2, "fastrl")] if dtype == np.uint8 else []
    found = tune.measure(SMALL, dataclasses.replace(IMAGE, obs_dtype=dtype), rule, others, [1])
    assert found.choice in [Choice("float32", count, name) for count in (1, 2) for name in ("torch", "fastrl")]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    configs = [args[0] for args in built]
    assert {config.batch_size for config in configs} == {4}
    assert not any(config.compile for config in configs)
    assert (configs[0].torch_threads, configs[0].kernels) == (2, "torch")


@pytest.mark.parametrize(
    ("share_of_others", "from_second", "quiet"), [(0.0, 0, True), (0.09, 0, True), (0.12, 0, False), (None, 0, True),
    (0.9, 1.2, False)],
)  # fmt: skip
def test_threads_race_first_and_then_precision_and_kernels_within_the_budget(
    monkeypatch, share_of_others, from_second, quiet
):
    """With a clock of its own, on which each choice takes what is said here."""
    now, built = [0.0], []
    seconds = {4: 0.04, 2: 0.02, 1: 0.03}
    factor = {("bfloat16", "fastrl"): 1.0, ("bfloat16", "torch"): 1.5, ("float32", "fastrl"): 0.5}

    def builder(config, shapes, rows):
        def build(choice):
            built.append(choice)
            now[0] += 0.05

            def work():
                now[0] += seconds[choice.torch_threads] * factor[choice.precision, choice.kernels]

            return work

        return build

    clock = lambda: now[0]  # noqa: E731
    monkeypatch.setattr(tune, "_builder", builder)
    monkeypatch.setattr(tune, "_games_beside", lambda config, rows: nullcontext(lambda build: build))
    monkeypatch.setattr(tune, "time", SimpleNamespace(perf_counter=clock, process_time=clock))
    monkeypatch.setattr(tune, "Race", lambda build, deadline: race.Race(build, deadline, clock))
    rule, others = Choice("bfloat16", 4, "fastrl"), [Choice("float32", 4, "fastrl"), Choice("bfloat16", 4, "torch")]
    monkeypatch.setattr(tune, "cpu_count", lambda: 4)

    def worked():
        return None if share_of_others is None else now[0] + 4 * share_of_others * max(0.0, now[0] - from_second)

    monkeypatch.setattr(tune, "busy_seconds", worked)
    found = tune.measure(SMALL, IMAGE, rule, others, [2, 1])
    assert found.choice == Choice("float32" if quiet else "bfloat16", 2, "fastrl")  # others do not choose a precision
    tried = {choice.precision for choice in built}
    assert tried == ({"bfloat16", "float32"} if quiet or from_second else {"bfloat16"})
    assert found.seconds == now[0] <= tune.BUDGET_SECONDS
    assert found.doubt == ("" if quiet else "on a busy machine")


@pytest.mark.parametrize(
    ("fixed", "of_a_row", "batch_size", "measured", "probes"),
    [
        (0.0, 1e-6, 16_384, PROBE * 8**3, 3),
        (0.0, 1e-6, 8 * PROBE, 8 * PROBE, 1),  # eight times as many are sure to be short
        (0.0, 1e-3, 1_024, 50, 2),
        (0.02, 1e-4, 1_024, 95, 3),  # of 300 that would fit, where one probe of 9 says 21
        (0.0, 0.1, 1_024, PROBE, 1),
        (0.0, 1.0, PROBE, PROBE, 0),
    ],
)
def test_of_a_long_update_fewer_rows_are_measured(monkeypatch, fixed, of_a_row, batch_size, measured, probes):
    now, built = [0.0], []

    def builder(config, shapes, rows):
        built.append(rows)

        def work():
            now[0] += fixed + of_a_row * rows

        return lambda choice: work

    monkeypatch.setattr(tune, "_builder", builder)
    monkeypatch.setattr(tune, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    config = AUTO.replace(batch_size=batch_size, trunk="nature", hidden=512)
    rows = tune._rows(config, SHAPES, RULE)
    assert rows == pytest.approx(measured, abs=1)
    assert rows <= max(PROBE, (tune.UPDATE_SECONDS - fixed) / of_a_row)
    assert built[:1] == [PROBE][:probes]
    assert len(built) == probes


class Games:
    """Eight games that count their steps."""

    num_actions = 4

    def __init__(self):
        self.calls = []

    def reset(self):
        self.calls.append("reset")

    def send(self, actions):
        assert actions.shape == (8,)
        assert (actions < 4).all()
        self.calls.append("send")

    def recv(self):
        self.calls.append("recv")

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize(
    ("changes", "rows", "updates", "steps"),
    [
        ({}, 64, 4, 8),  # a vector step of 64 games, and the four updates of 64 samples that are due after it
        ({}, 32, 4, 4),  # at most four
        ({"samples_per_step": 1.0}, 64, 1, 8),
        ({"samples_per_step": 0.01}, 64, 1, 64),  # 100 vector steps in one update are too many to wait for
        ({"num_envs": 1024}, 64, 4, 8),
        ({"batch_size": 256}, 256, 1, 8),
        ({"num_envs": 2}, 64, 1, 2),
    ],
)
def test_games_play_beside_updates_as_many_steps_as_a_run_would(monkeypatch, changes, rows, updates, steps):
    games, asked, learned = Games(), [], []
    monkeypatch.setattr(tune, "build_envs", lambda config, seed: asked.append(config) or games)
    with tune._games_beside(AUTO.replace(game="pong", **changes), rows) as beside:
        work = beside(lambda choice: lambda: learned.append(choice))(RULE)
        work()
        assert learned == [RULE] * updates
        assert games.calls == ["reset", *["send", "recv"] * steps]
    assert games.calls[-1] == "close"
    assert [(config.game, config.num_envs, config.env_groups) for config in asked] == [("pong", 8, 1)]


def test_a_fault_of_the_games_is_raised_and_they_are_closed(monkeypatch):
    games = Games()
    monkeypatch.setattr(tune, "build_envs", lambda config, seed: games)
    monkeypatch.setattr(games, "recv", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), tune._games_beside(AUTO, 64) as beside:
        beside(lambda choice: lambda: None)(RULE)()
    assert games.calls[-1] == "close"


@pytest.mark.parametrize("changes", [{"game": "my_module:make"}, {"collectors": 2}])
def test_custom_environments_and_games_elsewhere_do_not_play_beside(monkeypatch, changes):
    monkeypatch.setattr(tune, "build_envs", None)
    with tune._games_beside(AUTO.replace(**changes), 64) as beside:
        build = lambda choice: None  # noqa: E731
        assert beside(build) is build


@pytest.mark.parametrize(("slow", "built"), [(1.1, 1), (0.6, 2)])
def test_a_machine_that_starves_the_process_keeps_to_the_rule(monkeypatch, slow, built):
    now, learners = [0.0], []

    def builder(config, shapes, rows):
        def build(choice):
            learners.append(rows)
            now[0] += slow

            def work():
                now[0] += 1e-6

            return work

        return build

    clock = lambda: now[0]  # noqa: E731
    monkeypatch.setattr(tune, "_builder", builder)
    monkeypatch.setattr(tune, "time", SimpleNamespace(perf_counter=clock, process_time=clock))
    monkeypatch.setattr(tune, "Race", None)
    config = AUTO.replace(batch_size=1_024, trunk="nature", hidden=512)
    found = tune.measure(config, SHAPES, RULE, [], [4, 2, 1])
    assert found == Measured(RULE, "on a busy machine", now[0])
    assert now[0] <= tune.BUDGET_SECONDS
    assert len(learners) == built


def test_a_network_that_takes_seconds_to_build_is_not_measured(monkeypatch):
    large = AUTO.replace(trunk="impala", width=16, hidden=8_192)
    monkeypatch.setattr(tune, "_builder", None)
    assert tune._rows(large, SHAPES, RULE) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_random_batches_are_what_a_learner_takes(dtype):
    shapes = Shapes((2, 3, 5, 5), dtype, 6)
    batch = tune.random_batch(7, shapes)
    assert batch.obs.shape == batch.next_obs.shape == (7, 2, 3, 5, 5)
    assert batch.obs.dtype == dtype
    assert batch.obs.max() > (250 if dtype == np.uint8 else 0.9)
    assert set(batch.action) <= set(range(6))
