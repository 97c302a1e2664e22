"""Custom environments, single or in vectors of every autoreset mode, through the same loop as any game."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from quick_run import config_of, played
from replay_autoreset import Walk

pytest.importorskip("envpool")

from fastrl import evaluate, train, watch
from fastrl.base.errors import ConfigError
from fastrl.base.stop import Stop
from fastrl.envs import names
from fastrl.envs.custom import CustomEnvs
from fastrl.envs.foreign import EnvError
from fastrl.envs.names import load, name_of
from fastrl.envs.rules import EvaluationRules
from fastrl.film.q_bars import CHOSEN, WIDTH
from fastrl.play.games import play_games
from fastrl.runs import folder

HERE = __name__
ROOT = Path(__file__).parent.parent.parent
TWO_ACTIONS = spaces.Discrete(2)


class Painted(Walk):
    """Draws 20 rows and columns, all of the episode's shade."""

    render_mode = "rgb_array"

    def render(self):
        return np.full((20, 20, 3), self.episode * 16, np.uint8)


def make_walk():
    return Walk(0)


def make_painted():
    return Painted(0)


def make_vector(mode):
    return SyncVectorEnv([lambda k=k: Walk(k) for k in range(3)], autoreset_mode=mode)


def make_next():
    return make_vector(AutoresetMode.NEXT_STEP)


def make_same():
    return make_vector(AutoresetMode.SAME_STEP)


def make_disabled():
    return make_vector(AutoresetMode.DISABLED)


def make_async():
    return AsyncVectorEnv([lambda k=k: Walk(k) for k in range(2)], autoreset_mode=AutoresetMode.SAME_STEP)


MAKERS = {"next_step": make_next, "same_step": make_same, "disabled": make_disabled}


class Spaces(gym.Env):
    """Has the spaces that it is given, and goes on for ever."""

    def __init__(self, observation_space, action_space=TWO_ACTIONS):
        self.observation_space, self.action_space = observation_space, action_space
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.actions.append(action)
        return self.observation_space.sample(), -2.0, False, False, {}


def box(*shape, dtype=np.uint8):
    return spaces.Box(0, 200, shape, dtype)


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A fresh process, in a folder of its own: it was given no callable as an object."""
    monkeypatch.setattr(names, "_given", {})
    monkeypatch.chdir(tmp_path)


# --- records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_env", [make_walk, *MAKERS.values(), make_async])
def test_every_transition_in_the_replay_is_one_that_the_environments_made(make_env, tmp_path):
    run = played(config_of(make_env, tmp_path), 120)
    assert run.learner.updates > 0
    assert run.buffer.settings["autoreset"] == run.envs.autoreset
    batch = run.buffer.sample(run.buffer.drawable)
    ends = set()
    for obs, action, reward, next_obs, discount in zip(
        batch.obs[:, 0], batch.action, batch.reward, batch.next_obs[:, 0], batch.discount, strict=True
    ):
        number, episode, steps = obs
        assert next_obs.tolist() == [number, episode, steps + 1]
        assert reward == 10 * (steps + 1) + action
        over = steps + 1 == 1 + (episode + number) % 5
        terminated = over and episode % 3 != 2
        assert discount == pytest.approx(0 if terminated else run.config.gamma)
        ends |= {(bool(over), bool(terminated))}
    assert ends == {(False, False), (True, False), (True, True)}
    run.buffer.check()


@pytest.mark.parametrize("mode", MAKERS)
def test_records_tell_scores_lengths_and_where_episodes_begin(mode):
    envs = CustomEnvs(name_of(MAKERS[mode]), 1, seed=1)
    step = envs.reset()
    assert step.reset.all()
    assert step.first.all()
    assert not (step.terminated | step.truncated | step.game_over | (step.reward != 0)).any()
    before, games = step, 0
    for _ in range(40):
        step = envs.step([1, 1, 1])
        assert not (step.terminated & step.truncated).any()
        for i in range(3):
            steps = step.frame[i, 2]
            assert step.first[i] == (steps == 0)
            assert step.reset[i] == (mode == "next_step" and before.game_over[i])
            if step.game_over[i]:
                last = step.frame[i] if mode == "next_step" else step.final[i]
                games += 1
                length = 1 + (int(last[1]) + i) % 5
                assert last.tolist() == [i, last[1], length]
                assert (step.length[i], step.score[i]) == (length, sum(10 * t + 1 for t in range(1, length + 1)))
                assert step.truncated[i] == (last[1] % 3 == 2)
            else:
                assert step.length[i] == steps
        before = step
    assert games > 20
    envs.close()


def test_the_learner_sees_the_sign_of_rewards_if_so_asked_and_scores_do_not():
    envs = CustomEnvs(name_of(lambda: Spaces(box(3))), 2, seed=1, reward_clip=True)
    envs.reset()
    step = envs.step([0, 1])
    assert step.reward.tolist() == [-1, -1]
    assert step.score.tolist() == [-2, -2]


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (box(5, dtype=np.float64), (5,), np.float32),
        (box(5), (5,), np.uint8),
        (box(40, 50), (40, 50), np.uint8),
        (box(40, 50, 1), (40, 50), np.uint8),
        (box(1, 40, 50), (40, 50), np.uint8),
        (box(40, 50, 3), (3, 40, 50), np.uint8),
        (box(3, 40, 50, dtype=np.float32), (3, 40, 50), np.float32),
    ],
)
def test_vectors_and_images_of_any_layout_become_frames_that_the_network_takes(space, shape, dtype, tmp_path):
    def make_env():
        return Spaces(space)

    run = played(config_of(make_env, tmp_path, num_envs=4, trunk="vector" if len(shape) == 1 else "small", stack=2), 40)
    assert run.learner.updates > 0
    assert (run.envs.frame_shape, run.envs.frame_dtype) == (shape, dtype)
    batch = run.buffer.sample(4)
    assert batch.obs.shape == (4, 2, *shape)
    expected, _ = Spaces(space).reset(seed=7)
    envs = CustomEnvs(name_of(make_env), 1, seed=7)
    frame = envs.reset().frame[0]
    moved = np.moveaxis(expected, -1, 0) if space.shape == (40, 50, 3) else expected
    assert np.array_equal(frame, moved.reshape(shape).astype(dtype))


def test_actions_that_begin_elsewhere_arrive_as_the_environment_numbers_them():
    made = []

    def make_env():
        made.append(Spaces(box(3), spaces.Discrete(3, start=5)))
        return made[-1]

    envs = CustomEnvs(name_of(make_env), 2, seed=1)
    envs.reset()
    envs.step([0, 2])
    assert (made[0].actions, made[1].actions) == ([5], [7])
    assert len(made) == 2


# --- runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_env", [make_painted, make_same])
def test_a_run_is_resumed_evaluated_and_watched(make_env, tmp_path, capsys, monkeypatch):
    run = train.dqn(make_env, config_of(make_env, tmp_path, total_frames=300), quiet=True)
    assert run.config.game == f"{HERE}:{make_env.__name__}"
    assert folder.load_config(run.folder) == run.config
    again = train.dqn(make_env, run.config.replace(total_frames=600), resume=run.folder, quiet=True)
    assert again.frames >= 600
    assert again.learner.updates > run.learner.updates > 0
    assert train.main(["--resume", str(run.folder), "--total-frames", "900"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(run.folder), "--episodes", "4"]) == 0
    said = capsys.readouterr().out
    assert "4 games, whole games, unclipped scores, epsilon 0.01, at most 27,000 steps" in said
    assert "over 4 games" in said
    assert "protocol" not in said
    assert watch.main([str(run.folder), "--episodes", "2"]) == 0
    said = capsys.readouterr().out
    films = sorted(path.name.split("-")[0] for path in (run.folder / "pictures").glob("*.gif"))
    if make_env is make_painted:
        assert {"evaluation", "watch"} < set(films)
        assert len(films) > 2  # those of the run itself
    else:
        assert films == []
        assert said.endswith("make it with render_mode='rgb_array'\n")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert watch.main([str(run.folder), "--window"]) == 0
    assert ("nothing to see" in capsys.readouterr().out) == (make_env is not make_painted)


def test_the_command_trains_on_a_callable_by_its_name(tmp_path, capsys):
    flags = ["--total-frames", "300", "--no-compile", "--runs-dir", str(tmp_path), "--name", "x", "--hidden", "8"]
    assert train.main([f"{HERE}:make_walk", *flags]) == 0
    assert folder.load_config(tmp_path / "x").trunk == "vector"
    assert "custom environment with vector observations" in capsys.readouterr().out


def test_a_vector_decides_how_many_games_there_are(tmp_path):
    assert train.config_for(make_same).num_envs == 3
    with pytest.raises(ConfigError, match=r"--num-envs is 8, and .*:make_same makes 3 at a time; give 3"):
        train.dqn(make_same, config_of(make_same, tmp_path, num_envs=8), quiet=True)
    with pytest.raises(ConfigError, match=r"--num-envs is 8 in 2 groups, and .*:make_same makes 3 at a time; give 6"):
        train.dqn(make_same, config_of(make_same, tmp_path, num_envs=8, env_groups=2), quiet=True)
    run = played(config_of(make_same, tmp_path, num_envs=6, env_groups=2), 30)
    assert set(np.concatenate([run.buffer.sample(32).index for _ in range(10)]) % 6) == set(range(6))


@pytest.mark.parametrize("make_env", [make_walk, *MAKERS.values()])
def test_games_are_whole_and_counted_one_for_one(make_env):
    rules = EvaluationRules(epsilon=0)
    games = play_games(name_of(make_env), lambda stacks: np.ones(len(stacks), int), 7, seed=1, rules=rules)
    assert games.backend == "custom"
    assert games.scores.tolist() == [sum(10 * t + 1 for t in range(1, n + 1)) for n in games.lengths]
    assert games.lengths[:3].tolist() == ([1, 1, 1] if make_env is make_walk else [1, 2, 3])  # the first episodes
    assert games.lengths.max() <= 5


def test_films_show_own_pictures_beside_the_values_of_all_actions():
    def act(stacks):
        return np.tile([0.0, 1.0, 3.0, 2.0], (len(stacks), 1))

    def pictures(**settings):
        shown = []
        options = {"rules": EvaluationRules(epsilon=0), "film": True, "show": shown.append, **settings}
        film = play_games(name_of(make_painted), act, 3, seed=1, **options).film
        assert np.array_equal(film, shown)
        return film

    plain, film = pictures(), pictures(bars=True)
    assert len(film) == len(plain) == 2  # one step long
    assert np.array_equal(np.array(film)[:, :, :-WIDTH], np.array(plain).repeat(3, axis=1).repeat(3, axis=2))
    marked = [set(np.flatnonzero((picture == CHOSEN).all(axis=2).any(axis=1)) // 15) for picture in film]
    assert marked == [{2}, set()]  # the last picture shows no decision


def test_games_that_never_end_are_cut_off():
    name = name_of(lambda: Spaces(box(3)))
    games = play_games(name, lambda s: np.zeros(len(s), int), 3, seed=1, rules=EvaluationRules(epsilon=0, max_steps=5))
    assert games.lengths.tolist() == [5, 5, 5]
    assert games.scores.tolist() == [-10, -10, -10]
    assert games.film == []


def test_games_of_a_callable_are_those_of_its_name():
    rules = EvaluationRules(epsilon=0.5, max_steps=5)
    act = lambda stacks: np.zeros(len(stacks), int)  # noqa: E731
    by_name, by_itself = (play_games(game, act, 3, seed=1, rules=rules) for game in (name_of(make_walk), make_walk))
    assert by_itself.game == by_name.game == "test_custom:make_walk"
    assert by_itself.scores.tolist() == by_name.scores.tolist()
    with pytest.raises(ConfigError, match=r"is an environment itself"):
        play_games(make_walk(), act, 1, seed=1)


# --- names and refusals -------------------------------------------------------------------------------


def test_what_cannot_be_imported_by_name_is_asked_for(tmp_path, monkeypatch, request):
    run = train.dqn(lambda: Painted(0), config_of(make_painted, tmp_path), quiet=True)
    assert "<lambda>" in run.config.game
    assert evaluate.main([str(run.folder), "--episodes", "1"]) == 0  # this process knows it
    request.getfixturevalue("moved")
    for command in (evaluate.main, watch.main):
        with pytest.raises(ConfigError, match=r"<lambda>' cannot be imported .*evaluate and watch after --make-env"):
            command([str(run.folder)])
    with pytest.raises(ConfigError, match=r"train takes it in place of a game"):
        train.main(["--resume", str(run.folder)])
    make_env = f"{HERE}:make_painted"
    assert evaluate.main([str(run.folder), "--episodes", "1", "--make-env", make_env]) == 0
    assert watch.main([str(run.folder), "--make-env", make_env]) == 0
    assert train.main([make_env, "--resume", str(run.folder), "--total-frames", "900"]) == 0
    assert folder.load_config(run.folder).game == make_env
    with pytest.raises(ConfigError, match="--make-env is 'pong'; give my_module:make_env"):
        evaluate.main([str(run.folder), "--make-env", "pong"])


def test_a_script_goes_by_the_name_of_its_file(monkeypatch):
    from types import SimpleNamespace

    def make_env():
        return Walk(0)

    make_env.__module__, make_env.__qualname__ = "__main__", "make_env"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None, __file__="/somewhere/mine.py"))
    assert name_of(make_env) == "mine:make_env"
    assert load("mine:make_env") is make_env


TRAINS = {
    "dqn": "train.dqn(make_env, train.config_for(make_env).replace(total_frames=50), quiet=True)",
    "config": "run.train(train.config_for(make_env).replace(total_frames=50), quiet=True)",
    "run": "run.Run(train.config_for(make_env).replace(total_frames=50), [], Stop(), resume=None, quiet=True)",
    "command": "train.main(['catch', '--quiet', '--total-frames', '100', '--no-compile'])",
    "sarsa": "sarsa.train(SarsaConfig(episodes=1), quiet=True)",
    "cartpole": "train.main(['cartpole', '--quiet', '--episodes', '1'])",
}


@pytest.mark.parametrize("trains", TRAINS.values(), ids=list(TRAINS))
def test_no_script_trains_while_it_is_imported_for_its_environment(trains, moved, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_script", raising=False)
    Path("a_script.py").write_text(
        "from fastrl import train\nfrom fastrl.base.stop import Stop\nfrom fastrl.config import SarsaConfig\n"
        "from fastrl.dqn import run\nfrom fastrl.sarsa import run as sarsa\nfrom replay_autoreset import Walk\n\n"
        f"def make_env():\n    return Walk(0)\n\n{trains}\n"
    )
    for command in (train.main, lambda names: load(names[0])):
        with pytest.raises(ConfigError) as refused:
            command(["a_script:make_env"])
        assert str(refused.value) == (
            "a_script trains at a_script.py:11 while it is imported for its environment 'a_script:make_env', and would "
            'train once more each time; put that call under `if __name__ == "__main__":`'
        )
    assert not Path("runs").exists()


def test_no_script_trains_in_a_process_that_reads_it_for_a_vector(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(ConfigError, match=r'the script trains .*process of its vector.*`if __name__ == "__main__":`'):
        train.dqn(make_walk, config_of(make_walk, tmp_path), quiet=True)
    assert list(tmp_path.iterdir()) == []


def spawned(tmp_path, *words):
    """Run Python in a process of its own, in that folder; return its status, stdout and stderr."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "examples"), *sys.path])
    return subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )


def test_a_script_whose_vector_spawns_processes_is_read_by_them_and_trains_once(tmp_path):
    (tmp_path / "spawning.py").write_text(
        "from gymnasium.vector import AsyncVectorEnv\nfrom replay_autoreset import Walk\n"
        "from fastrl.train import config_for, dqn\n\ndef one():\n    return Walk(0)\n\n"
        "def make_env():\n    return AsyncVectorEnv([one] * 2, context='spawn')\n\n"
        "if __name__ == '__main__':\n    config = config_for(make_env).replace(total_frames=200, compile=False)\n"
        "    print(dqn(make_env, config, quiet=True).frames)\n"
    )
    done = spawned(tmp_path, "spawning.py")
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


class NotOfThem:
    pass


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (lambda: Spaces(box(3), spaces.Box(-1, 1, (2,))), "has the actions Box.*whose action space is Discrete"),
        (lambda: Spaces(spaces.Text(9)), "has the observations Text.*FlattenObservation"),
        (lambda: Spaces(box(6, 7, 12)), r"of shape \[6, 7, 12\], whose channels may be .* \(.*FlattenObservation\)"),
        (NotOfThem, "returned NotOfThem; return a gymnasium.Env or a"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(make_env, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train.dqn(make_env, config_of(make_walk, tmp_path), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_vector_must_say_how_it_resets():
    def make_env():
        envs = make_vector(AutoresetMode.NEXT_STEP)
        del envs.metadata["autoreset_mode"]
        return envs

    with pytest.raises(ConfigError, match=r"metadata\['autoreset_mode'\] is None; set it to the"):
        CustomEnvs(name_of(make_env), 1, seed=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make_env", "environment 'no_such_module:make_env' cannot be imported .No module named"),
        (f"{HERE}:no_such_name", "cannot be imported .module .* has no attribute 'no_such_name'"),
        (f"{HERE}:HERE", "is of type str, which cannot be called"),
        (":make_env", "cannot be imported .Empty module name"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_with_one_that_might(name, message):
    with pytest.raises(ConfigError, match=message):
        train.main([name])


def test_misuse_is_answered():
    envs = CustomEnvs(name_of(make_next), 1, seed=1)
    with pytest.raises(RuntimeError, match="call send"):
        envs.recv()
    with pytest.raises(RuntimeError, match="render_mode is not 'rgb_array'"):
        envs.render()
    envs.reset()
    for actions, message in (([0, 1], "2 entries for 3"), ([0, 1, 4], "from 0 to 3"), ([0.0] * 3, "integers")):
        with pytest.raises(ValueError, match=message):
            envs.send(actions)
    envs.send([0, 1, 2])
    for call in (envs.reset, lambda: envs.send([0, 1, 2])):
        with pytest.raises(RuntimeError, match="in progress"):
            call()
    envs.close()


@pytest.mark.filterwarnings("ignore:.*close")
def test_processes_that_were_begun_inside_a_stop_are_gone_once_a_lost_one_was_noticed():
    """Forked there they hear the first SIGTERM as a request, and the exit of Python would wait for them."""
    with Stop(quiet=True):
        envs = CustomEnvs(name_of(make_async), 2, seed=0)
        envs.reset()
        processes = envs._envs.processes
        processes[0].kill()
        processes[0].join()
        with pytest.raises(EnvError, match="a process of its vector is gone"):
            envs.step(np.zeros(2, np.int64))
        envs.close()
        for process in processes:
            process.join(10)
            assert not process.is_alive()
