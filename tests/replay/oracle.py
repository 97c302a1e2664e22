"""A replay by brute force: a list of everything that was ever added, read back by definition."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np


@dataclass
class Row:
    frame: int
    game: int
    episode: int
    action: int = 0
    reward: float = 0.0
    ended: str = ""  # "terminated", "truncated"
    final: bool = False  # a final observation: no action was taken there
    extra: int = 0  # a field of one's own
    priority: float = 1.0


class Oracle:
    """Environments as lists of rows; frames are integers that name themselves, 0 is the frame of zeros."""

    def __init__(self, num_envs, rows, stack, padding, n_step, gamma, autoreset):
        self.rows, self.stack, self.padding, self.n_step, self.gamma = rows, stack, padding, n_step, gamma
        self.next_step = autoreset == "next_step"
        self.envs: list[list[Row]] = [[] for _ in range(num_envs)]
        self.lost = [0] * num_envs  # rows before this one were gone when the rings grew
        self.max_priority = 1.0

    def add(self, env, frame, action, reward, terminated, truncated, first, final_frame, extra=0, final_extra=None):
        rows = self.envs[env]
        last = rows[-1] if rows else None
        if last is not None and last.ended and first is not True:
            assert self.next_step
            self._append(env, Row(frame, last.game, last.episode, final=True, extra=extra))
            return
        starts = last is None or last.final or first is True
        new_game = last is None or (starts if first is None else first)
        game = last.game + 1 if last and new_game else last.game if last else 0
        episode = last.episode + 1 if last and (starts or new_game) else last.episode if last else 0
        ended = "terminated" if terminated else "truncated" if truncated else ""
        self._append(env, Row(frame, game, episode, action, reward, ended, extra=extra))
        if ended and not self.next_step:
            final = Row(frame if final_frame is None else final_frame, game, episode, final=True)
            final.extra = extra if final_extra is None else final_extra
            self._append(env, final)

    def _append(self, env, row):
        with self._new_rows_are_promising(env):
            self.envs[env].append(row)

    def set_n_step(self, n_step):
        with ExitStack() as stack:
            for env in range(len(self.envs)):
                stack.enter_context(self._new_rows_are_promising(env))
            self.n_step = n_step

    def resize(self, rows):
        """Give the rings another number of slots; what was gone before stays gone."""
        self.lost = [self.oldest(env) for env in range(len(self.envs))]
        self.rows = rows

    def oldest(self, env):
        return max(self.lost[env], len(self.envs[env]) - self.rows)

    @contextmanager
    def _new_rows_are_promising(self, env):
        before = set(self.drawable(env))
        yield
        for r in set(self.drawable(env)) - before:
            self.envs[env][r].priority = self.max_priority

    def __len__(self):
        return sum(len(rows) - self.oldest(env) for env, rows in enumerate(self.envs))

    def numbers(self, env, r):
        """Rows whose frames make the stack at row r: those of its game, the newest ``stack`` of them."""
        game = [k for k in range(r + 1) if self.envs[env][k].game == self.envs[env][r].game]
        return game[-self.stack :]

    def observation(self, env, r, stack=None):
        """The newest ``stack`` frames, by default as many as the deepest stack has."""
        stack = self.stack if stack is None else stack
        frames = [self.envs[env][k].frame for k in self.numbers(env, r)[-stack:]]
        pad = frames[0] if self.padding == "first" else 0
        return [pad] * (stack - len(frames)) + frames

    def window(self, env, r):
        """Rows whose rewards are summed from row r on, or None while they or the next frame are unknown."""
        rows = self.envs[env]
        for length in range(1, self.n_step + 1):
            after = r + length
            if after >= len(rows) or rows[after].episode != rows[r].episode:
                return None
            if rows[after - 1].ended or length == self.n_step:
                return range(r, after)
        raise AssertionError

    def drawable(self, env):
        rows = self.envs[env]
        oldest = self.oldest(env)
        return [
            r
            for r in range(oldest, len(rows))
            if not rows[r].final and min(self.numbers(env, r)) >= oldest and self.window(env, r) is not None
        ]

    def after(self, env, r):
        """The row after the window of row r."""
        return self.window(env, r)[-1] + 1

    def transition(self, env, r):
        """Every field of the transition from row r."""
        rows, window = self.envs[env], self.window(env, r)
        reward = 0.0
        for k, w in enumerate(window):
            reward += self.gamma**k * float(np.float32(rows[w].reward))
        discount = 0.0 if rows[window[-1]].ended == "terminated" else self.gamma ** len(window)
        return {
            "obs": self.observation(env, r),
            "action": rows[r].action,
            "reward": np.float32(reward),
            "next_obs": self.observation(env, self.after(env, r)),
            "discount": np.float32(discount),
        }

    def closed(self, env, r, length):
        """Whether ``length`` more steps of the game came after row r, or all that it had."""
        rows = self.envs[env]
        return r + length < len(rows) or rows[-1].game != rows[r].game or rows[-1].final

    def cells(self, length, period):
        """Rows of each cell that count when stretches are drawn, by environment and first of them."""
        found = {}
        for env, rows in enumerate(self.envs):
            counting = [r for r in self.drawable(env) if self.closed(env, r, length)]
            for r in counting:
                cell = [q for q in counting if rows[q].game == rows[r].game and q // period == r // period]
                found[env, cell[0]] = cell
        return found

    def stretch(self, env, start, length, burn_in):
        """Steps of the stretch from row ``start``, None where there is none, and its observations."""
        rows = self.envs[env]
        game = [q for q, row in enumerate(rows) if row.game == rows[start].game and q >= self.oldest(env)]
        whole = [q for q in game if min(self.numbers(env, q)) >= self.oldest(env) and not rows[q].final]
        begin = min(q for q in whole if start - burn_in <= q <= start)
        steps, observations = [None] * (burn_in + length), [None] * (burn_in + length + 1)
        for q in range(begin, min(start + length, game[-1])):
            place = q - start + burn_in
            observations[place] = self.observation(env, q)
            observations[place + 1] = self.observation(env, q + 1)
            if not rows[q].final:
                discount = 0.0 if rows[q].ended == "terminated" else self.gamma
                steps[place] = (rows[q].action, np.float32(rows[q].reward), np.float32(discount))
        return steps, observations
