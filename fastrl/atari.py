"""EnvPool's Atari games as one record per step; the only module that knows EnvPool's rules.

The rules that everything else may forget:

* **Resets take a row.** EnvPool resets on the step *after* an episode's end: that step ignores its action
  and returns the first observation with reward 0. Such rows are marked ``reset``; they are no agent steps.
* **A lost life ends the episode, not the game** (with ``episodic_life``). Frame stacks look back past it;
  they begin anew where ``first`` is set. ``game_over`` is the real end.
* **No-ops are played after a lost life too**, and a game that ends in them is replaced without a word.
  It shows in the lives alone; the reset row then carries ``game_over`` (of the old game) and ``first``.

Words and letters as in `fastrl.steps`, whose `Envs` these are.
"""

from __future__ import annotations

import difflib
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.checks import at_least, numbers, require
from fastrl.config import ConfigError
from fastrl.extras import need
from fastrl.machine import cpu_count
from fastrl.steps import Array, Autoreset, Step

CATCH_STEPS = 9  # length of every game of Catch: the ball falls through ten rows


@functools.cache
def _tasks() -> dict[str, str]:
    """Plain name to EnvPool id; its registry says which ids are Atari (other suites use -v5 too)."""
    specs = need("envpool.registration", "train").registry.specs
    atari = {options["task"]: task for task, (module, _, options) in specs.items() if module == "envpool.atari"}
    return {**dict(sorted(atari.items())), "catch": "Catch-v0"}


def game_names() -> list[str]:
    """Return the plain names of all games, such as ``space_invaders``; ``catch`` comes last."""
    return list(_tasks())


def game_name(game: str) -> str:
    """Return the plain name of a game in any spelling: ``ALE/SpaceInvaders-v5`` gives ``space_invaders``.

    Raises ConfigError if there is no such game; the message names the nearest ones.
    """
    spellings: dict[str, str] = {}
    for name, task in _tasks().items():
        spellings |= dict.fromkeys((name, task.split("-")[0].lower(), task.lower(), f"ale/{task}".lower()), name)
    if game.lower() in spellings:
        return spellings[game.lower()]
    near = difflib.get_close_matches(game.lower().removeprefix("ale/"), spellings, n=6)
    names = list(dict.fromkeys(spellings[spelling] for spelling in near))[:3]
    remedy = f"did you mean {' or '.join(names)}?" if names else "fastrl.atari.game_names() lists the games"
    raise ConfigError(f"game is {game!r}, which EnvPool does not have; {remedy}")


def task_id(game: str) -> str:
    """Return EnvPool's id of a game in any spelling: ``breakout`` gives ``Breakout-v5``; errors as `game_name`."""
    return _tasks()[game_name(game)]


@functools.cache  # ale_py takes 0.2 s to load a game
def action_names(name: str, full: bool = False) -> tuple[str, ...]:
    """Return the names of a game's actions (`full`: all that the console has), in order; none without ale_py."""
    if name == "catch":
        return ("LEFT", "STAY", "RIGHT")
    try:
        import ale_py
    except ImportError:
        return ()
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(str(ale_py.roms.get_rom_path(name)))
    return tuple(action.name for action in (ale.getLegalActionSet() if full else ale.getMinimalActionSet()))


class AtariEnvs:
    """`num_envs` copies of a game that EnvPool steps side by side, synchronously and reproducibly.

    Parameters
    ----------
    game : any spelling that `task_id` takes. ``catch`` has neither emulator nor lives: of what follows only
        seed, threads and dephase_steps touch it, and its `frame_skip` is 1.
    num_envs : number of environments ``N``, about 1 MB each.
    seed : at least 0. Every environment gets its own seed, derived from it: same seed, same games, whatever
        the number of threads.
    threads : EnvPool's threads, at most `num_envs` (0: one per CPU core that this process may use).
    frame_skip : emulator frames per agent step.
    episodic_life : a lost life is `terminated`. On also where whole games count: EnvPool presses FIRE after
        a lost life only then, and a policy that never fires stands still without it.
    fire_reset : resets press FIRE, in games that have it among their actions.
    full_action_set : all actions of the console (18; Lost Luggage: 9) instead of those that the game uses.
    reward_clip : `Step.reward` is the sign of the reward; `Step.score` is never clipped.
    repeat_action_probability : chance per emulator frame that the last action is repeated (sticky actions).
    noop_max : resets play 1 to so many frames, no-ops and the FIRE; at least one.
    max_episode_steps : agent steps after which a game is cut off; lost lives do not restart the count.
    dephase_steps : `reset()` opens each game with 0 to so many random actions, so that games do not end
        together. Scores and lengths of these games include them.
    render : allow `render()`.

    Raises ConfigError for a setting out of its range or an unknown game, ImportError without EnvPool.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        seed: int,
        threads: int = 0,
        frame_skip: int = 4,
        episodic_life: bool = True,
        fire_reset: bool = True,
        full_action_set: bool = False,
        reward_clip: bool = True,
        repeat_action_probability: float = 0.0,
        noop_max: int = 30,
        max_episode_steps: int = 27_000,
        dephase_steps: int = 0,
        render: bool = False,
    ) -> None:
        counts = {"num_envs": num_envs, "frame_skip": frame_skip, "noop_max": noop_max}
        at_least(1, **counts, max_episode_steps=max_episode_steps)
        at_least(0, seed=seed, threads=threads, dephase_steps=dephase_steps)
        if not 0 <= repeat_action_probability <= 1:
            raise ConfigError(f"repeat_action_probability is {repeat_action_probability}; give 0 to 1")
        task = task_id(game)
        self._catch = task == "Catch-v0"
        if self._catch and max_episode_steps < CATCH_STEPS:
            raise ConfigError(f"max_episode_steps is {max_episode_steps}; catch takes at least {CATCH_STEPS}")
        env_seeds, dephase_seed = np.random.SeedSequence(seed).spawn(2)
        options: dict[str, Any] = {
            "num_envs": num_envs,
            "num_threads": min(threads or cpu_count(), num_envs),
            "seed": (env_seeds.generate_state(num_envs) & 0x7FFF_FFFF).tolist(),  # EnvPool's seeds are int32
        }
        if not self._catch:
            options |= {
                "stack_num": 1,
                "frame_skip": frame_skip,
                "episodic_life": episodic_life,
                "use_fire_reset": fire_reset,
                "full_action_space": full_action_set,
                "reward_clip": reward_clip,
                "repeat_action_probability": repeat_action_probability,
                "noop_max": noop_max,
                "max_episode_steps": max_episode_steps,
                "render_mode": "rgb_array" if render else None,
            }
        self._pool = need("envpool", "train").make(task, env_type="gymnasium", **options)
        self.num_envs = num_envs
        self.num_actions = int(self._pool.action_space.n)
        self.action_names = list(action_names(game_name(game), full_action_set) or map(str, range(self.num_actions)))
        self.frame_skip = 1 if self._catch else frame_skip
        self.frame_shape: tuple[int, ...] = (10, 5) if self._catch else (84, 84)
        self.frame_dtype: np.dtype[Any] = np.dtype(np.float32 if self._catch else np.uint8)
        self.autoreset: Autoreset = "next_step"
        self._render = render and not self._catch
        self._episodic_life = episodic_life
        self._dephase_steps = dephase_steps
        self._dephase_rng = np.random.default_rng(dephase_seed)
        # By environment: was its last row an episode's end; its lives; the running game's score and first step.
        self._ended = np.zeros(num_envs, np.bool_)
        self._lives = np.zeros(num_envs, np.int32)
        self._score = np.zeros(num_envs, np.float64)
        self._opened = np.zeros(num_envs, np.int64)
        self._sent = -1  # rows that recv() owes; -1 before the first reset

    def reset(self) -> Step:
        """Start new games in all environments and return one `reset` row for each, none of them final.

        Costs up to `dephase_steps` steps. With them a row may stand in the middle of a game (`first` unset).
        """
        require(self._sent <= 0, "reset() while actions are under way; call recv() first")
        self._ended[:], self._score[:], self._opened[:] = False, 0, 0
        frame, info = self._pool.reset()
        self._sent = 0
        none = np.zeros(self.num_envs, np.bool_)
        self._lives = info.get("lives", self._lives).copy()
        start = self._record(frame, np.zeros(self.num_envs, np.float32), none, none, info)
        self._dephase(start)
        length = np.where(start.game_over, 0, start.length)  # the games that run now, not those that ended
        score, reward = self._score.astype(np.float32), np.zeros_like(start.reward)
        none, over, cut = np.zeros((3, self.num_envs), np.bool_)
        return Step(start.frame, reward, none, cut, start.first, ~none, over, score, length, start.env_id)

    def send(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> None:
        """Start one step and return at once; `recv` waits for it.

        `actions` is [n] integers below `num_actions`. `env_id` is [n] integers, each at most once: the
        environments to step (default: all, in order); the others stand still. Raises ValueError for a wrong
        shape, type or range, RuntimeError before `reset()` or while a step is under way.
        """
        require(self._sent >= 0, "send() before reset(); call reset() first")
        require(self._sent == 0, "send() while actions are under way; call recv() first")
        ids = None if env_id is None else numbers("env_id", env_id, self.num_envs)
        rows = self.num_envs if ids is None else len(ids)
        acts = numbers("actions", actions, self.num_actions)
        if len(acts) != rows or rows == 0:
            raise ValueError(f"actions has {len(acts)} entries for {rows} environments; give one action for each")
        if ids is not None and len(np.unique(ids)) < rows:
            raise ValueError(f"env_id is {ids.tolist()}; name each environment at most once")
        self._sent = rows
        self._pool.send(acts, ids)

    def recv(self) -> Step:
        """Wait for the step that `send` started; its rows come in the order sent. RuntimeError if there is none."""
        require(self._sent > 0, "recv() without a step under way; call send() first")
        frame, reward, terminated, truncated, info = self._pool.recv()
        self._sent = 0
        return self._record(frame, reward, terminated, truncated, info)

    def step(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> Step:
        """`send`, then `recv`."""
        self.send(actions, env_id)
        return self.recv()

    def render(self, env_id: int = 0) -> npt.NDArray[np.uint8]:
        """Return the screen of one environment, [210, 160, 3] uint8.

        Raises RuntimeError if built without ``render=True``, for ``catch``, or while a step is under way.
        """
        require(self._render, "render() of envs without screens; build them with render=True (not catch)")
        require(self._sent == 0, "render() while actions are under way; call recv() first")
        ids = numbers("env_id", [env_id], self.num_envs)
        screen: npt.NDArray[np.uint8] = np.array(self._pool.render(env_ids=ids)[0])
        return screen

    def close(self) -> None:
        """Free the emulators, once a step under way has ended; nothing else may be called afterwards."""
        if self._sent > 0:
            self.recv()
        self._pool.close()

    def _record(self, frame: Array, reward: Array, terminated: Array, truncated: Array, info: dict[str, Any]) -> Step:
        """Turn EnvPool's rows into a Step and bring the per-environment books up to date."""
        ids = info["env_id"]
        elapsed = info["elapsed_step"].astype(np.int64)  # of the whole game; reset rows do not count
        lives = info.get("lives", np.zeros_like(ids))
        reset = self._ended[ids]
        ended = terminated | truncated
        over = ended & (info.get("terminated", terminated) != 0)
        lost_life = self._episodic_life & (lives < self._lives[ids])
        terminated = terminated | (ended & (over | lost_life))  # EnvPool lets the time limit hide both
        replaced = reset & (elapsed > 0) & (lives > self._lives[ids])
        new_game = elapsed == 0
        first = new_game | replaced
        score = np.where(new_game, 0.0, self._score[ids] + info.get("reward", reward))
        length = np.where(new_game, 0, elapsed - self._opened[ids])
        self._ended[ids] = ended
        self._lives[ids] = lives
        self._score[ids] = np.where(replaced, 0.0, score)
        self._opened[ids] = np.where(first, elapsed, self._opened[ids])
        return Step(
            frame=frame if self._catch else frame[:, 0],
            reward=reward,
            terminated=terminated,
            truncated=truncated & ~terminated,
            first=first,
            reset=reset,
            game_over=over | truncated | replaced,
            score=score.astype(np.float32),
            length=length,
            env_id=ids,
        )

    def _dephase(self, start: Step) -> None:
        """Play each environment's share of random actions; `start` (all environments) is updated in place."""
        shares = self._dephase_rng.integers(self._dephase_steps + 1, size=self.num_envs)
        for played in range(shares.max()):
            actions = self._dephase_rng.integers(self.num_actions, size=self.num_envs)
            ids = np.flatnonzero(shares > played)
            start.update(self.step(actions[ids], ids))
        ids = np.flatnonzero(self._ended)
        if len(ids):
            start.update(self.step(np.zeros(len(ids), np.int64), ids))
