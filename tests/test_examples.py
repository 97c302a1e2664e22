"""The examples do what they say: their agents learn, their batches hold what the environments gave."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import replay_autoreset
import replay_dataloader
import torch

from fastrl.runs.folder import load_dqn_config

EXAMPLES = {path.stem for path in Path(__file__).parent.parent.glob("examples/*.py")}
ELSEWHERE = {"sb3_breakout"}  # tested beside what it shows


@pytest.mark.parametrize(
    ("example", "total_steps", "gain"), [("replay_gymnasium", 5_000, 40), ("replay_continuous", 10_000, 500)]
)
def test_what_was_learnt_earns_more(example, total_steps, gain):
    first, last = importlib.import_module(example).main(total_steps)
    assert last > first + gain


def expected(number):
    """Every transition of one environment's first episodes, worked out from what the environment says of itself."""
    walk, rows = replay_autoreset.Walk(number), []
    for _ in range(replay_autoreset.EPISODES):
        frames, actions, rewards, ended = [walk.reset()[0]], [], [], False
        while not ended:
            actions.append(int(frames[-1].sum()) % 4)
            frame, reward, terminated, truncated, _ = walk.step(actions[-1])
            frames.append(frame)
            rewards.append(reward)
            ended = terminated or truncated
        for t, action in enumerate(actions):
            end = min(t + 2, len(actions))
            reward = sum(0.5**k * r for k, r in enumerate(rewards[t:end]))
            discount = 0.0 if terminated and end == len(actions) else 0.5 ** (end - t)
            stacks = (*frames[max(t - 1, 0)], *frames[t]), (*frames[end - 1], *frames[end])
            rows.append((*map(float, stacks[0]), float(action), reward, *map(float, stacks[1]), discount))
    return rows


@pytest.mark.parametrize("mode", replay_autoreset.MODES, ids=lambda mode: mode.name)
def test_each_autoreset_mode_gives_what_the_environments_gave(mode):
    found = replay_autoreset.transitions(replay_autoreset.play(mode))
    assert found == sorted(row for k in range(replay_autoreset.NUM_ENVS) for row in expected(k))


def test_the_autoreset_example_finds_no_difference(capsys):
    replay_autoreset.main()
    assert capsys.readouterr().out.endswith("the same in all three modes\n")


@pytest.mark.slow
def test_a_recurrent_network_solves_the_maze_and_the_same_without_memory_does_not():
    without, having = importlib.import_module("replay_recurrent").main()
    assert having == 1.0
    assert abs(without) < 0.25


def test_a_recurrent_network_soon_turns_as_the_sign_said():
    replay_recurrent = importlib.import_module("replay_recurrent")
    network = replay_recurrent.train(8_000, memory=True)
    assert replay_recurrent.mean_return(network, episodes=50) > 0.5  # without memory at most about 0


def test_goals_are_reached_with_hindsight_and_not_without():
    without, having = importlib.import_module("replay_hindsight").main()
    assert without < 0.05
    assert having > 0.95


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # CPython from 3.12 on, if there are threads
def test_workers_of_a_dataloader_draw_batches_of_their_own_that_a_seed_repeats():
    drawn = replay_dataloader.draw("fork", seed=1)
    assert len(drawn) == len(set(drawn)) == 2 * replay_dataloader.WORKERS * replay_dataloader.BATCHES  # in two epochs
    assert replay_dataloader.draw("fork", seed=1) == drawn
    assert not set(replay_dataloader.draw("fork", seed=2)) & set(drawn)
    assert replay_dataloader.draw("spawn", seed=1, epochs=1) == drawn[: len(drawn) // 2]


def test_the_cleanrl_example_learns_from_the_very_stacks_that_it_acted_on(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    replay_cleanrl = pytest.importorskip("replay_cleanrl", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    stacks, rows, networks, act = [], [], [], replay_cleanrl.act

    def watched_act(network, obs, epsilon, rng):
        stacks.append(obs.copy())
        networks.append([p.detach().clone() for p in network.parameters()] if not networks else network)
        return act(network, obs, epsilon, rng)

    class WatchedReplay(replay_cleanrl.PrioritizedReplayBuffer):
        def add(self, obs, action, reward, terminated, truncated):
            rows.append((action, reward, terminated, terminated | truncated))
            super().add(obs, action, reward, terminated, truncated)

    monkeypatch.setattr(replay_cleanrl, "act", watched_act)
    monkeypatch.setattr(replay_cleanrl, "PrioritizedReplayBuffer", WatchedReplay)
    settings = {"total_timesteps": 800, "learning_starts": 760, "buffer_size": 700, "batch_size": 8}
    rb = replay_cleanrl.main(replay_cleanrl.Args(num_envs=2, n_step=3, gamma=0.5, **settings))
    assert not any(map(torch.equal, networks[0], networks[-1].parameters()))

    action, reward, terminated, ended = map(np.array, zip(*rows, strict=True))  # [T, 2]
    expected = set()
    for t, i in np.ndindex(len(rows) - 3, 2):
        if not (t and ended[t - 1, i]):  # else it is a final observation
            length = next((k + 1 for k in range(3) if ended[t + k, i]), 3)
            total = np.float32(sum(0.5**k * reward[t + k, i] for k in range(length)))
            discount = 0.0 if terminated[t + length - 1, i] else 0.5**length
            now, after = (stacks[s][i].tobytes() for s in (t, t + length))
            expected.add((now, int(action[t, i]), float(total), after, discount))
    batch = rb.sample(400)
    for obs, act_, sum_, next_obs, discount in zip(
        batch.obs, batch.action, batch.reward, batch.next_obs, batch.discount, strict=True
    ):
        assert (obs.tobytes(), int(act_), float(sum_), next_obs.tobytes(), float(discount)) in expected
    assert set(batch.discount.tolist()) >= {0.0, 0.125}
    assert list(tmp_path.glob("runs/*/events*"))


def test_the_picture_of_q_values_is_drawn(tmp_path):
    pytest.importorskip("envpool")
    run = importlib.import_module("watch_q_values").main(total_frames=3_000, runs_dir=str(tmp_path))
    assert list(Path(run.folder).glob("q_over_time.gif"))


def test_an_environment_of_ones_own_is_learned_and_looked_into(tmp_path):
    pytest.importorskip("envpool")
    run = importlib.import_module("own_environment").main(total_frames=20_000, runs_dir=str(tmp_path))
    assert run.evaluation.last.mean > 100  # random play: 22
    assert list(run.folder.path.glob("q_over_time.gif"))
    assert list(run.folder.path.glob("pictures/*.gif"))


def test_a_sweep_keeps_each_trial_as_a_run_ends_poor_ones_early_and_resumes_from_its_database(tmp_path):
    optuna = pytest.importorskip("optuna")
    optuna_sweep = importlib.import_module("optuna_sweep")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna_sweep.sweep(6, tmp_path, frames=2_000)
    states = [trial.state.name for trial in study.trials]
    assert set(states[:4]) == {"COMPLETE"}  # enough to compare with
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert all(trial.intermediate_values.keys() == {400, 800, 1_200, 1_600, 2_000} for trial in study.trials[:4])
    again = optuna_sweep.sweep(1, tmp_path, frames=2_000)
    assert len(again.trials) == 7
    assert again.trials[6].params != again.trials[0].params
    for trial in again.trials:
        run = tmp_path / f"catch-2000-{trial.number:04d}"
        assert load_dqn_config(run).learning_rate == pytest.approx(trial.params["learning_rate"])


def test_a_poor_trial_is_ended_at_its_evaluation_and_a_good_one_is_not():
    optuna = pytest.importorskip("optuna")
    prune = importlib.import_module("optuna_sweep").Prune

    def evaluated(*, poor, over):
        reported = []
        trial = SimpleNamespace(report=lambda score, at: reported.append((score, at)), should_prune=lambda: poor)
        prune(trial).on_evaluation(SimpleNamespace(frames=400, over=over), SimpleNamespace(mean=0.5))
        return reported

    assert evaluated(poor=False, over=False) == evaluated(poor=True, over=True) == [(0.5, 400)]
    with pytest.raises(optuna.TrialPruned, match=r"0\.50 after 400 frames"):
        evaluated(poor=True, over=False)


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    assert all(name in tested for name in EXAMPLES | ELSEWHERE)
