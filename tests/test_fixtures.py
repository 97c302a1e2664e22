"""Runs and replays that an earlier version saved resume here as they resumed there; see fixtures/README.md.

What is asserted to the bit does not depend on the processor: which rows the replay holds and what is in them, which of
them the saved generator draws, counters, and the state of games. Actions of `catch` and `images` are random (epsilon
1), so that rounding cannot change what is played. Weights, losses and the observations of CartPole are sums of
floats, whose last bits differ between processors with other SIMD widths: they are compared with a tolerance. On the
kind of processor that made the fixtures, FIXTURES_TO_THE_BIT=1 asks for equal bits there too.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("envpool")

from safetensors.numpy import load_file

from fastrl import evaluate, train
from fastrl.envs import custom
from fastrl.replay import PrioritizedReplayBuffer

FIXTURES = Path(__file__).resolve().parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
TO_THE_BIT = bool(os.environ.get("FIXTURES_TO_THE_BIT"))
TOLERANCE = 1e-4
DQN = ["catch", "images"]


@pytest.fixture(autouse=True)
def the_module_of_the_images_is_found(monkeypatch):
    monkeypatch.syspath_prepend(FIXTURES)


@pytest.fixture(autouse=True)
def environments_get_the_seeds_of_then(monkeypatch):
    """Those of custom environments had 32 bits; all else is compared with what that version did."""
    monkeypatch.setattr(custom, "SEEDS", 2**33)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return a function that goes on with a copy of a fixture to its end, once, and returns its folder."""
    known = {}

    def go_on(name):
        if name not in known:
            known[name] = copied(name, tmp_path_factory.mktemp("ended"))
            assert train.main(["--resume", str(known[name]), "--quiet"]) == 0
        return known[name]

    return go_on


def copied(name, folder):
    return Path(shutil.copytree(FIXTURES / name, folder / name))


def newest(run):
    """Return the newest checkpoint of a run."""
    return sorted((run / "checkpoints").glob("[0-9]*"))[-1]


def state_of(run):
    return json.loads((newest(run) / "state.json").read_text())


def lines_of(run):
    """Read metrics.csv without its time columns, empty cells, and the samples, which that version did not write."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and k != "samples" and not k.startswith("time/")} for row in rows]


def rows_of(path):
    """Return a digest of each row that can be drawn from a saved replay, by its name."""
    buffer, rows = PrioritizedReplayBuffer.load(path), {}
    for _ in range(200):
        batch = buffer.sample(100)
        for i, index in enumerate(batch.index):
            seen = hashlib.sha256()
            for column in (batch.obs, batch.action, batch.reward, batch.next_obs, batch.discount):
                seen.update(np.ascontiguousarray(column[i]).tobytes())
            rows[str(index)] = seen.hexdigest()[:16]
        buffer.update_priorities(batch.index, np.zeros(100))  # draw the others now
        if len(rows) == buffer.drawable:
            break
    return rows


def assert_draws(path, expected):
    """Check which rows the saved generator draws, eight rows at a time, and their weights."""
    buffer = PrioritizedReplayBuffer.load(path)
    batches = [buffer.sample(8, beta=0.5) for _ in range(2)]
    assert np.concatenate([batch.index for batch in batches]).tolist() == expected["index"]
    # Powers of floats, which a library computes: the last bit may differ.
    weights = np.concatenate([batch.weight for batch in batches])
    np.testing.assert_allclose(weights, np.float32(expected["weight"]), rtol=0 if TO_THE_BIT else 1e-6)


def assert_close(line, expected):
    """Compare a line of metrics: counters to the bit, all that the network has a part in with a tolerance."""
    assert line.keys() == expected.keys()
    exact = ("frames", "steps", "updates", "games/", "replay/n_step", "replay/rows", "replay/drawable", "actions/")
    for name, value in expected.items():
        if TO_THE_BIT or name.startswith(exact):
            assert line[name] == value, name
        else:
            assert float(line[name]) == pytest.approx(float(value), rel=1e-2, abs=TOLERANCE), name


# --- deep Q-learning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DQN)
def test_a_saved_replay_holds_the_same_rows_and_draws_the_same_of_them(name):
    path, expected = newest(FIXTURES / name) / "replay", EXPECTED[name]
    assert rows_of(path) == expected["rows_saved"]
    assert_draws(path, expected["drawn_saved"])


@pytest.mark.parametrize("name", DQN)
def test_a_resumed_run_ends_with_the_same_counters_and_the_same_rows_in_its_replay(ended, name):
    run, expected = ended(name), EXPECTED[name]
    assert {key: state_of(run)[key] for key in ("frames", "steps")} == {k: expected[k] for k in ("frames", "steps")}
    assert int(float(lines_of(run)[-2]["updates"])) == expected["updates"]
    assert rows_of(newest(run) / "replay") == expected["rows"]


@pytest.mark.parametrize("name", DQN)
def test_a_resumed_run_learns_the_same_weights(ended, name):
    weights = load_file(newest(ended(name)) / "weights.safetensors")
    expected = load_file(FIXTURES / "expected" / f"{name}.safetensors")
    before = load_file(newest(FIXTURES / name) / "weights.safetensors")
    assert weights.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_allclose(weights[key], tensor, rtol=0, atol=TOLERANCE, err_msg=key)
    assert max(np.abs(tensor - before[key]).max() for key, tensor in expected.items()) > 30 * TOLERANCE
    if TO_THE_BIT:
        seen = {key: hashlib.sha256(tensor.tobytes()).hexdigest() for key, tensor in weights.items()}
        assert seen == EXPECTED[name]["sha256"]


@pytest.mark.parametrize("name", DQN)
def test_the_metrics_of_a_resumed_run_go_on_behind_those_that_were_saved(ended, name):
    lines, saved, expected = lines_of(ended(name)), lines_of(FIXTURES / name), EXPECTED[name]
    assert lines[: len(saved)] == saved
    assert len(lines) == expected["lines"]
    assert_close(lines[-2], expected["last_metrics"])
    assert lines[-1].keys() == expected["last_evaluation"].keys()
    if TO_THE_BIT:  # one other action changes a score: no tolerance fits
        assert lines[-1] == expected["last_evaluation"]


def test_a_run_resumed_from_python_tells_what_it_did(tmp_path):
    from image_env import make_env

    run = train.dqn(make_env, resume=copied("images", tmp_path), quiet=True)
    assert (run.frames, run.steps, run.stop.signal) == (EXPECTED["images"]["frames"], EXPECTED["images"]["steps"], None)
    assert run.abandoned == run.config.num_envs  # environments of one's own cannot be saved
    assert len(run.evaluation.last.scores) == 2


def test_the_command_goes_on_with_a_run_in_a_process_of_its_own(tmp_path):
    run = copied("catch", tmp_path)
    words = [sys.executable, "-m", "fastrl.train", "--resume", str(run)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"resuming after {EXPECTED['catch']['frames_saved']:,} frames" in done.stdout
    assert "with its replay" in done.stdout
    assert state_of(run)["frames"] == EXPECTED["catch"]["frames"]


@pytest.mark.parametrize("name", DQN)
def test_the_network_of_a_saved_run_plays_the_same_games(name, tmp_path):
    told, film = tmp_path / "scores.json", tmp_path / "film.gif"
    words = [str(FIXTURES / name), "--episodes", "5", "--json", str(told), "--out", str(film)]
    assert evaluate.main(words) == 0
    assert json.loads(told.read_text())["scores"] == EXPECTED[name]["scores_saved"]
    assert film.exists()


@pytest.mark.parametrize("expected", EXPECTED["games"]["ends"], ids=["one step", "some steps"])
def test_games_that_were_saved_go_on_where_they_were(expected, tmp_path):
    import number_run

    run = copied("games", tmp_path)
    number_run.play(run, resume=True, at=expected["stop_after"], number=signal.SIGTERM)
    games = load_file(newest(run) / "games.safetensors")
    assert {key: hashlib.sha256(tensor.tobytes()).hexdigest() for key, tensor in games.items()} == expected["sha256"]
    assert state_of(run)["frames"] == expected["frames"]
    assert state_of(run)["abandoned"] == expected["abandoned"] == 0
    assert rows_of(newest(run) / "replay") == expected["rows"]


# --- SARSA --------------------------------------------------------------------------------------------


def test_cartpole_goes_on_to_the_same_scores(ended):
    run, expected = ended("cartpole"), EXPECTED["cartpole"]
    saved, lines = lines_of(FIXTURES / "cartpole"), lines_of(run)
    assert lines[: len(saved)] == saved
    assert len(lines) == expected["lines"]
    for version in ("v0", "v1"):
        with np.load(run / "checkpoints" / f"sarsa-{version}.npz") as found:
            assert found["returns"].tolist() == expected[version]["returns"]
            tolerance = 0 if TO_THE_BIT else TOLERANCE
            np.testing.assert_allclose(found["weights"], expected[version]["weights"], rtol=tolerance, atol=tolerance)
        (score,) = (line[key] for line in lines if (key := f"{version}/evaluation_return_mean") in line)
        assert float(score) == expected[version]["evaluation_return_mean"]


# --- replay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_a_buffer_saved_as_one_file_loads_and_draws_the_same(kind):
    path, expected = FIXTURES / "replay" / f"{kind}.replay", EXPECTED["replay"][kind]
    buffer = PrioritizedReplayBuffer.load(path)
    buffer.check()
    assert (len(buffer), buffer.drawable) == (expected["rows_held"], expected["drawable"])
    assert buffer.max_priority == expected["max_priority"]
    assert buffer.settings["n_step"] == 3
    assert np.dtype(buffer.settings["obs_dtype"]) == np.dtype(kind)
    assert_draws(path, expected["drawn"])
    assert rows_of(path) == expected["rows"]
