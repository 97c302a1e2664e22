"""EnvPool's Atari games as one record per step; the only module that knows EnvPool's rules.

The rules that other modules need not know:

* **Resets take a row.** EnvPool resets on the step *after* an episode's end: that step ignores its action
  and returns the first observation with reward 0. Such rows are marked ``reset``; they are no agent steps.
* **A lost life ends the episode, not the game** (with ``episodic_life``). Frame stacks look back past it;
  they start over where ``first`` is set. ``game_over`` is the real end.
* **EnvPool plays no-ops after a lost life too**, and silently replaces a game that ends in them. Only the
  lives show it; the reset row then carries ``game_over`` (of the old game) and ``first``.

Words and letters as in `fastrl.envs.step`, whose `GameEnvs` these are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import at_least, check_state, indices, share
from fastrl.base.errors import ConfigError
from fastrl.base.extras import extra
from fastrl.base.machine import cpu_count
from fastrl.envs.names import action_names, game_name, task_id
from fastrl.envs.step import Array, Autoreset, Step, check_actions

with extra("train"):
    import envpool

CATCH_STEPS = 9  # length of every game of Catch: the ball falls through ten rows


class AtariEnvs:
    """`num_envs` copies of a game. EnvPool steps them side by side, synchronously and reproducibly.

    Parameters
    ----------
    game : any spelling that `task_id` takes. ``catch`` has neither emulator nor lives: of what follows only
        seed, threads and dephase_steps affect it, and its `frame_skip` is 1.
    num_envs : number of environments ``N``, about 1 MB each.
    seed : at least 0. Every environment gets its own seed, derived from it: same seed, same games, for any
        number of threads.
    first : number of the first environment among those that the seed is for: 8 environments from the 16th on play what
        those of a larger number play.
    threads : EnvPool's threads, at most `num_envs` (0: one per CPU core that this process may use).
    frame_skip : emulator frames per agent step.
    episodic_life : a lost life is `terminated`. On also where whole games count: EnvPool presses FIRE after
        a lost life only then, and without it a policy that never fires gets no further.
    fire_reset : resets press FIRE, in games that have it among their actions.
    full_action_set : all actions of the console (18; Lost Luggage: 9) instead of those that the game uses.
    reward_clip : `Step.reward` is the sign of the reward; `Step.score` is never clipped.
    repeat_action_probability : chance per emulator frame that the last action is repeated (sticky actions).
    noop_max : resets play 1 to `noop_max` frames, no-ops and the FIRE; at least 1.
    max_episode_steps : agent steps after which a game is cut off; lost lives do not restart the count.
    dephase_steps : `reset()` starts each game with 0 to `dephase_steps` random actions, to keep games out of
        lockstep. Scores and lengths of these games include them.
    render : allow `render()`; `has_pictures` says whether the game has a screen too (all but ``catch``).

    Raises ConfigError for a setting out of its range or an unknown game.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        seed: int,
        first: int = 0,
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
        at_least(0, seed=seed, first=first, threads=threads, dephase_steps=dephase_steps)
        share(repeat_action_probability=repeat_action_probability)
        task = task_id(game)
        self._catch = task == "Catch-v0"
        if self._catch and max_episode_steps < CATCH_STEPS:
            raise ConfigError(f"max_episode_steps is {max_episode_steps}; catch takes at least {CATCH_STEPS}")
        env_seeds, dephase_seed = np.random.SeedSequence(seed).spawn(2)
        seeds = env_seeds.generate_state(first + num_envs)[first:] & 0x7FFF_FFFF  # EnvPool's are int32
        options: dict[str, Any] = {
            "num_envs": num_envs,
            "num_threads": min(threads or cpu_count(), num_envs),
            "seed": seeds.tolist(),
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
        self._pool = envpool.make(task, env_type="gymnasium", **options)
        self.num_envs = num_envs
        self.num_actions = int(self._pool.action_space.n)
        self.action_names = list(action_names(game_name(game), full_action_set) or map(str, range(self.num_actions)))
        self.frame_skip = 1 if self._catch else frame_skip
        self.frame_shape: tuple[int, ...] = (10, 5) if self._catch else (84, 84)
        self.frame_dtype: np.dtype[Any] = np.dtype(np.float32 if self._catch else np.uint8)
        self.autoreset: Autoreset = "next_step"
        self.has_pictures = render and not self._catch
        self.shows_frames = False
        self.takes_actions = True  # resets ignore theirs, but take a row among others
        self._episodic_life = episodic_life
        self._dephase_steps = dephase_steps
        self._dephase_rng = np.random.default_rng(dephase_seed)
        # By environment: whether its last row ended an episode; its lives; the running game's score and first step.
        self._ended = np.zeros(num_envs, np.bool_)
        self._lives = np.zeros(num_envs, np.int32)
        self._score = np.zeros(num_envs, np.float64)
        self._opened = np.zeros(num_envs, np.int64)
        self._sent = -1  # rows that recv() owes; -1 before the first reset

    def reset(self) -> Step:
        """Start new games in all environments and return one `reset` row for each; no row ends an episode.

        Costs up to `dephase_steps` steps. With them a row may stand in the middle of a game (`first` unset).
        """
        check_state(self._sent <= 0, "reset() while a step is in progress; call recv() first")
        self._ended[:], self._score[:], self._opened[:] = False, 0, 0
        frame, info = self._pool.reset()
        self._sent = 0
        no = np.zeros(self.num_envs, np.bool_)
        self._lives = info.get("lives", self._lives).copy()
        start = self._record(frame, np.zeros(self.num_envs, np.float32), no, no, info)
        self._dephase(start)
        length = np.where(start.game_over, 0, start.length)  # the games that run now, not those that ended
        score, reward = self._score.copy(), np.zeros_like(start.reward)
        no, over, cut = np.zeros((3, self.num_envs), np.bool_)
        return Step(start.frame, reward, no, cut, start.first, ~no, over, score, length, start.env_id)

    def send(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> None:
        """Start one step and return at once; `recv` waits for it.

        `actions` is [n] integers below `num_actions`. `env_id` is [n] integers, each at most once: the
        environments to step (default: all, in order); the others stand still. Raises ValueError for a wrong
        shape, type or range, RuntimeError before `reset()` or while a step is in progress.
        """
        check_state(self._sent >= 0, "send() before reset(); call reset() first")
        check_state(self._sent == 0, "send() while a step is in progress; call recv() first")
        acts, ids = check_actions(actions, env_id, self)
        self._sent = len(acts)
        self._pool.send(acts, ids)

    def recv(self) -> Step:
        """Wait for the step that `send` started; its rows come in the order sent. RuntimeError without one."""
        check_state(self._sent > 0, "recv() without a step in progress; call send() first")
        frame, reward, terminated, truncated, info = self._pool.recv()
        self._sent = 0
        return self._record(frame, reward, terminated, truncated, info)

    def step(self, actions: npt.ArrayLike, env_id: npt.ArrayLike | None = None) -> Step:
        """`send`, then `recv`."""
        self.send(actions, env_id)
        return self.recv()

    def render(self, env_id: int = 0) -> npt.NDArray[np.uint8]:
        """Return the screen of one environment, [210, 160, 3] uint8.

        Raises RuntimeError if built without ``render=True``, for ``catch``, or while a step is in progress.
        """
        check_state(self.has_pictures, "render() of envs without screens; build them with render=True (not catch)")
        check_state(self._sent == 0, "render() while a step is in progress; call recv() first")
        ids = indices("env_id", [env_id], self.num_envs)
        screens = self._pool.render(env_ids=ids)
        assert screens is not None  # only in render_mode "human"
        return np.array(screens[0], np.uint8)

    def close(self) -> None:
        """Free the emulators, after waiting for a step in progress; call nothing else afterwards."""
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
            score=score,
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
