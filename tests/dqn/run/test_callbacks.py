"""What callbacks tell the screen and TensorBoard, on small runs of Catch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from number_run import rows
from quick_run import QUICK, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastrl import train
from fastrl.base.errors import ConfigError, RunError
from fastrl.dqn import checkpoint, run
from fastrl.dqn.callbacks import Callback, named
from fastrl.dqn.run.clock import Clock
from fastrl.dqn.run.evaluation import Evaluation
from fastrl.runs.folder import RunFolder


def test_the_screen_is_told_scores_stages_and_what_comes_next(tmp_path):
    seen = []

    class Look(Callback):
        def on_log(self, run, metrics):
            seen.append((run.frames // 1_000, dict(run.reporter.extras.due)))

    ended = start(QUICK.replace(total_frames=3_000, log_every_frames=400), tmp_path, Look())
    assert seen[0] == (0, {"evaluation": 2_000, "save": 1_000})
    assert (1, {"evaluation": 2_000, "save": 2_000}) in seen
    assert seen[-1] == (3, {"evaluation": 3_000, "save": 3_000})  # both come at the end
    assert sum(ended.reporter.extras.shares.values()) == pytest.approx(1)
    assert set(ended.reporter.extras.scores) == {-1.0, 1.0}


def test_a_clock_says_when_it_is_due_next():
    clock = Clock(100)
    clock.set(250)
    assert clock.next == 300
    assert not clock.due(299)
    assert clock.due(510)
    assert clock.next == 600


def test_a_quiet_run_prints_nothing_and_writes_all(tmp_path, capfd):
    flags = [
        "--runs-dir",
        str(tmp_path),
        "--name",
        "a",
        "--no-compile",
        "--total-frames",
        "600",
        "--final-episodes",
        "1",
    ]
    assert train.main(["catch", "--quiet", *flags]) == 0
    sarsa = ["--learners", "4", "--episodes", "2", "--version", "v0", "--runs-dir", str(tmp_path), "--name", "b"]
    assert train.main(["cartpole", "--quiet", *sarsa]) == 0
    assert capfd.readouterr() == ("", "")
    for name in "ab":
        assert (tmp_path / name / "metrics.csv").exists()


def test_every_metric_is_explained(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    explained = set(re.findall(r"`([^`]+)`", "".join(line for line in page.splitlines() if line.startswith("| `"))))
    columns = set(rows(start(QUICK.replace(total_frames=2_000), tmp_path).folder)[0])
    assert {"evaluation/return_mean", "update_ratio/value", "replay/age_mean"} < columns
    for column in columns:
        assert explained & {column, re.sub("/.*", "/…", column), column.replace("evaluation/return", "…")}, column


def test_tensorboard_gets_histograms_and_each_layers_update_ratio(tmp_path):
    ended = start(QUICK.replace(total_frames=2_000), tmp_path)
    events = EventAccumulator(str(ended.folder), size_guidance={"histograms": 0, "scalars": 0}).Reload()
    sizes = {"train/q": 64 * 3, "train/abs_td": 64, "replay/age": 64, "replay/priority_weight": 64}
    for tag, size in sizes.items():
        written = events.Histograms(tag)
        assert [entry.histogram_value.num for entry in written] == [size] * len(written), tag
        assert len(written) == sum(bool(row["replay/age_mean"]) for row in rows(ended.folder)) >= 2
    assert "actions" in events.Tags()["histograms"]
    layers = {name.rpartition(".")[0] for name, _ in ended.learner.online.named_parameters()}
    for layer in layers:
        ratios = [event.value for event in events.Scalars(f"update_ratio/{layer}")]
        assert all(0 < ratio < 1 for ratio in ratios)
        assert sum(bool(row[f"update_ratio/{layer}"]) for row in rows(ended.folder)) == len(ratios) >= 1


class Counter(Callback):
    """Counts updates, under a key of its own."""

    key = "my counter"

    def __init__(self):
        self.count = 0

    def on_update(self, run, batch):
        self.count += 1

    def state(self):
        return {"count": self.count}

    def load_state(self, state):
        self.count = state.get("count", 0)


class Renamed(Counter):
    """The same class after a change of its name."""

    key = "my counter"


class Mine(Evaluation):
    """A subclass of one of the run's own callbacks."""


def test_callbacks_go_by_their_keys_a_second_one_of_a_key_numbered():
    one, two, three = Counter(), Counter(), Callback()
    assert named([one, two, three]) == {"my counter": one, "my counter#2": two, "Callback": three}


def test_a_subclass_does_not_take_the_key_of_its_base():
    mine, its = Mine(), Evaluation()
    assert named([mine, its]) == {"Mine": mine, "evaluation": its}


def test_a_callback_of_another_name_and_the_same_key_finds_its_state(tmp_path):
    first = Counter()
    ended = start(QUICK.replace(total_frames=2_000), tmp_path, first)
    again = Renamed()
    run.train(ended.config.replace(total_frames=2_100), [again], resume=ended.folder, quiet=True)
    assert again.count > first.count > 0


def test_states_of_format_2_are_lifted_to_keys(tmp_path):
    callbacks = {"Metrics": {"games": 1}, "Evaluation": {"best": 2.0}, "Evaluation#2": {"best": 3.0}, "Mine": {}}
    (tmp_path / "state.json").write_text(json.dumps({"format": 2, "callbacks": callbacks}))
    lifted = {"metrics": {"games": 1}, "Evaluation": {"best": 2.0}, "evaluation": {"best": 3.0}, "Mine": {}}
    assert checkpoint.load_state(tmp_path)["callbacks"] == lifted  # a user's class of the same name came first


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "metrics",
            "callback Keyed has the key 'metrics', which belongs to a callback of every run; give its class an",
        ),
        ("evaluation", "'evaluation', which belongs"),
        ("checkpoints", "'checkpoints', which belongs"),
        (5, "callback Keyed has the key 5; give text without a #"),
        ("a#2", "callback Keyed has the key 'a#2'; give text without a #"),
    ],
)
def test_a_key_that_is_taken_or_invalid_is_refused_before_anything_is_written(tmp_path, key, message):
    keyed = type("Keyed", (Callback,), {"key": key})
    with pytest.raises(ConfigError, match=re.escape(message)):
        start(QUICK, tmp_path, keyed())
    assert list(tmp_path.iterdir()) == []


class Spoilt(Callback):
    """Its state cannot be saved after a while."""

    def __init__(self, fault):
        self.fault, self.frames = fault, 0

    def on_step(self, run, actions):
        self.frames = run.frames

    def state(self):
        return self.fault() if self.frames > 1_500 else {"fine": 1}


def raises():
    raise LookupError("nothing here")


@pytest.mark.parametrize(
    ("fault", "message"),
    [(raises, "LookupError: nothing here"), (lambda: {"array": np.zeros(2)}, "TypeError: Object of type ndarray")],
)
def test_a_state_that_cannot_be_saved_ends_the_run_which_keeps_all_else(tmp_path, capsys, fault, message):
    with pytest.raises(RunError, match=rf"the state of callback Spoilt cannot be saved \({message}"):
        run.train(QUICK.replace(runs_dir=str(tmp_path), name="run"), [Counter(), Spoilt(fault)])
    said = capsys.readouterr().out
    assert "it is left out" in said
    assert "RunError ended the run; what was learned is saved; resume with" in said
    newest = RunFolder(tmp_path / "run").find()
    states = checkpoint.load_state(newest)["callbacks"]
    assert int(newest.name) > 1_500
    assert states["my counter"]["count"] > 0
    assert "Spoilt" not in states
    again = Spoilt(dict)
    resumed = run.train(QUICK.replace(total_frames=2_100), [Counter(), again], resume=tmp_path / "run", quiet=True)
    assert resumed.frames >= 2_100
