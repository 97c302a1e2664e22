"""Whole runs on action masks: what the replay holds, learning, evaluations, resumes, collectors."""

from __future__ import annotations

import json
import shutil
import signal

import masked_envs
import number_run
import numpy as np
import pytest
from masked_envs import (
    ACTIONS,
    MAKERS,
    Doors,
    make_doors,
    make_either,
    make_unmasked_doors,
    make_vectors_of_doors,
    mask_of,
)
from number_games import NumberGames
from number_run import CONFIG, batches, play, rows
from quick_run import Scores, config_of, played

pytest.importorskip("envpool")

from fastrl import evaluate, train, watch
from fastrl.base.errors import ConfigError
from fastrl.base.stop import Stop
from fastrl.distributed.chunk import pack
from fastrl.dqn.run import Run
from fastrl.envs.masks import ACTION_MASK, have_masks
from fastrl.envs.names import name_of

# --- the replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("make_env", MAKERS)
def test_every_transition_has_the_masks_of_both_its_states(make_env, n_step, tmp_path):
    run = played(config_of(make_env, tmp_path, n_step=n_step, n_step_end=n_step), 100)
    assert run.learner.updates > 0
    batch = run.buffer.sample(run.buffer.drawable)
    looked_on = 0
    for obs, mask, action, next_obs, next_mask, discount in zip(
        batch.obs[:, -1], batch.extra[ACTION_MASK], batch.action, batch.next_obs[:, -1], batch.next_extra[ACTION_MASK],
        batch.discount, strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(mask, mask_of(obs))
        assert mask[action]
        expected = mask_of(next_obs) if discount else np.ones(ACTIONS, bool)  # n steps on, or where it was cut off
        if discount or run.envs.autoreset == "next_step":
            np.testing.assert_array_equal(next_mask, expected)
        assert next_mask.any()
        looked_on += discount > 0
    assert looked_on > 10


def test_a_run_without_masks_has_no_fields(tmp_path):
    run = played(config_of(make_unmasked_doors, tmp_path), 30)
    assert not have_masks(run.envs)
    assert "extra" not in run.buffer.settings
    assert type(run.buffer.sample(4)).__name__ == "Batch"


# --- learning and evaluations -------------------------------------------------------------------------


SETTINGS = {
    "total_frames": 2_400, "learn_start_steps": 200, "epsilon_steps": 1_000, "hidden": 32, "learning_rate": 3e-3,
    "target_period_updates": 50, "evaluate_episodes": 2, "final_episodes": 8, "gamma": 0.9, "stack": 1,
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"munchausen": True}, {"double": False, "head": "quantile", "quantiles": 5}])
def test_a_game_of_doors_is_learned_and_no_shut_door_is_tried(settings, tmp_path, capsys):
    evaluated = Scores()  # a shut door raises, in the run and in its evaluations
    run = train.dqn(make_doors, config_of(make_doors, tmp_path, **SETTINGS | settings), [evaluated], quiet=True)
    assert evaluated.scores.mean() > 0.9
    if not settings:
        assert evaluate.main([str(run.folder), "--episodes", "20", "--epsilon", "0.5"]) == 0
        assert watch.main([str(run.folder), "--episodes", "2", "--epsilon", "1"]) == 0
        assert "over 20 games" in capsys.readouterr().out


def test_without_masks_shut_doors_are_tried(tmp_path, monkeypatch):
    tried, step = [], Doors.step
    monkeypatch.setattr(
        Doors, "step", lambda self, action: tried.append(self.open()[int(action)]) or step(self, action)
    )
    played(config_of(make_unmasked_doors, tmp_path), 30)
    assert not all(tried)


# --- resumes ------------------------------------------------------------------------------------------


def test_the_replay_of_a_masked_run_is_resumed_with_its_masks(tmp_path):
    run = train.dqn(make_doors, config_of(make_doors, tmp_path, total_frames=300), quiet=True)
    before = {name: array.copy() for name, array in run.buffer.sample(64).extra.items()}
    again = train.dqn(make_doors, run.config.replace(total_frames=600), resume=run.folder, quiet=True)
    assert again.learner.updates > run.learner.updates > 0
    assert again.buffer.settings["extra"].keys() == before.keys() == {ACTION_MASK}
    opens = {tuple(mask) for mask in again.buffer.sample(256).extra[ACTION_MASK].tolist()}
    doors = Doors()
    rooms = [setattr(doors, "room", room) or tuple(doors.open().tolist()) for room in range(Doors.ROOMS)]
    assert opens == set(rooms)


@pytest.mark.parametrize(
    ("masked", "words"),
    [
        (True, "made with action masks, and masked_envs:make_either gives no action masks now"),
        (False, "made with no action masks, and masked_envs:make_either gives action masks now"),
    ],
)
def test_a_replay_of_another_kind_is_refused_with_a_remedy(masked, words, tmp_path, monkeypatch):
    monkeypatch.setitem(masked_envs.either, "masked", masked)
    run = train.dqn(make_either, config_of(make_either, tmp_path, total_frames=300), quiet=True)
    monkeypatch.setitem(masked_envs.either, "masked", not masked)
    longer = run.config.replace(total_frames=600)
    with pytest.raises(ConfigError, match=words) as refused:
        train.dqn(make_either, longer, resume=run.folder, quiet=True)
    assert "or delete the replay to resume with an empty one" in str(refused.value)
    shutil.rmtree(next(run.folder.path.glob("checkpoints/*/replay")))
    resumed = train.dqn(make_either, longer, resume=run.folder, quiet=True)
    assert ("extra" in resumed.buffer.settings) != masked


def test_an_agent_of_masks_is_refused_by_an_environment_that_has_lost_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(masked_envs.either, "masked", True)
    run = train.dqn(make_either, config_of(make_either, tmp_path, total_frames=300), quiet=True)
    command = [str(run.folder), "--episodes", "2"]
    assert evaluate.main(command) == 0
    lost = r"gives no action masks, and the agent was trained with them: .* or --make-env the environment"
    monkeypatch.setitem(masked_envs.either, "masked", False)
    for refuses in (evaluate.main, watch.main):
        with pytest.raises(ConfigError, match=lost):
            refuses(command)
    assert evaluate.main([*command, "--make-env", "masked_envs:make_doors"]) == 0
    state = run.folder.find() / "state.json"  # of an older version, which did not say
    lines = json.loads(state.read_text())
    del lines["masked"]
    state.write_text(json.dumps(lines))
    (state.parent / "SHA256SUMS").unlink()
    assert evaluate.main(command) == 0


@pytest.mark.parametrize("make_env", [make_either, make_vectors_of_doors])
def test_an_agent_without_masks_plays_an_environment_with_some_by_them(make_env, tmp_path, monkeypatch):
    monkeypatch.setitem(masked_envs.either, "masked", False)
    run = train.dqn(make_either, config_of(make_either, tmp_path, total_frames=300), quiet=True)
    monkeypatch.setitem(masked_envs.either, "masked", True)
    words = [str(run.folder), "--episodes", "2", "--make-env", name_of(make_env)]
    assert evaluate.main(words) == 0


class MaskedNumbers(NumberGames):
    """Games that can be saved, with masks that follow from the frames; an action that is forbidden fails."""

    masked = True

    def send(self, actions):
        assert mask_of_numbers(self._frame)[np.arange(len(actions)), actions].all()
        super().send(actions)

    def _step(self, *args):
        step = super()._step(*args)
        step.mask = mask_of_numbers(step.frame)
        return step


def mask_of_numbers(frame):
    return np.arange(3) != (frame[:, 0, 1] * 3).astype(int)[:, None]


@pytest.mark.parametrize(("groups", "munchausen"), [(1, False), (2, True)])
def test_a_masked_run_that_was_stopped_and_resumed_is_the_unbroken_one_to_the_bit(
    groups, munchausen, tmp_path, monkeypatch
):
    monkeypatch.setattr(number_run, "NumberGames", MaskedNumbers)
    settings = CONFIG.replace(
        env_groups=groups, munchausen=munchausen, evaluate_every_frames=10**6, final_episodes=1, total_frames=1_200
    )
    whole = play(tmp_path / "whole", config=settings)
    stopped = play(tmp_path / "cut", config=settings, at=717, number=signal.SIGTERM)
    assert 0 < stopped.learner.updates < whole.learner.updates
    resumed = play(tmp_path / "cut", config=settings, resume=True)
    for name, weight in whole.learner.online.state_dict().items():
        assert weight.equal(resumed.learner.online.state_dict()[name]), name
    assert batches(whole.folder) == batches(resumed.folder)
    assert rows(whole.folder) == rows(resumed.folder)
    one, other = (run.buffer.sample(256) for run in (whole, resumed))
    for mine, its in ((one.extra, other.extra), (one.next_extra, other.next_extra)):
        np.testing.assert_array_equal(mine[ACTION_MASK], its[ACTION_MASK])
    np.testing.assert_array_equal(one.extra[ACTION_MASK], mask_of_numbers(one.obs[:, -1]))
    np.testing.assert_array_equal(one.next_extra[ACTION_MASK], mask_of_numbers(one.next_obs[:, -1]))


# --- collectors ---------------------------------------------------------------------------------------


def test_collectors_send_masks_along(tmp_path):
    run = Run(config_of(make_vectors_of_doors, tmp_path, num_envs=3), [], Stop(), resume=None, quiet=True)
    received = []
    with run.reporter:
        run.start()
        for _ in range(45):
            run.collector.send(run.policy)
            received.append(run.collector.recv())
    run.close()
    chunk = pack(received, number=0, born=1, seq=1, version=0)
    finals = 0
    for step, row in enumerate(received):
        again = chunk.rows(step, row.env_id)
        np.testing.assert_array_equal(again.mask, row.mask)
        assert (again.final_mask is None) == (row.final_mask is None)
        if row.final_mask is not None:
            finals += 1
            np.testing.assert_array_equal(again.final_mask, row.final_mask)
        some = again.select(np.array([True, False, True]))
        np.testing.assert_array_equal(some.mask, row.mask[[0, 2]])
    assert finals
