"""Games whose frames name themselves, and a ledger of everything that ever happened in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrl.envs.step import Step

SHAPE = (4, 4)


@dataclass
class Entry:
    """What happened at one frame."""

    before: int  # the frame before it in its game; 0: it opens the game
    action: int = -1  # taken there; -1: none, or one that the game ignored
    reward: float = 0.0
    ended: str = ""
    after: int = 0


class Ledger:
    """All frames of all processes, by their numbers."""

    def __init__(self):
        self.entries = {0: Entry(0)}

    def new(self, before):
        number = len(self.entries)
        self.entries[number] = Entry(before)
        return number


def picture(numbers):
    """Return frames [n, 4, 4] uint8 that hold these numbers."""
    return np.repeat(np.asarray(numbers, "<u4").view(np.uint8).reshape(-1, 1, 4), 4, axis=1)


def number_of(frames):
    """Return the numbers that frames [..., 4, 4] hold."""
    return np.ascontiguousarray(frames[..., 0, :]).view("<u4")[..., 0]


class LedgerGames:
    """N games; an episode ends by chance, by its rules, a lost life or the time limit."""

    num_actions, action_names = 3, ["a", "b", "c"]
    frame_shape, frame_dtype, frame_skip = SHAPE, np.dtype(np.uint8), 1

    def __init__(self, ledger, num_envs, seed, autoreset="next_step"):
        self.ledger, self.num_envs, self.autoreset = ledger, num_envs, autoreset
        self._rng = np.random.default_rng(seed)
        self._frame = [ledger.new(0) for _ in range(num_envs)]
        self._ended, self._keeps = [""] * num_envs, [False] * num_envs

    def reset(self):
        yes = np.ones(self.num_envs, bool)
        return self._step(np.zeros(self.num_envs), ~yes, ~yes, yes, yes, ~yes, None)

    def send(self, actions):
        self._actions = np.asarray(actions).copy()

    def recv(self):
        n, entries = self.num_envs, self.ledger.entries
        reward = np.zeros(n)
        terminated, truncated, first, reset, over = np.zeros((5, n), bool)
        final = None
        for i in range(n):
            if self._ended[i] and self.autoreset == "next_step":  # the action is ignored
                reset[i], first[i] = True, not self._keeps[i]
                self._frame[i] = self.ledger.new(self._frame[i] if self._keeps[i] else 0)
                self._ended[i] = ""
                continue
            here = self._frame[i]
            entry = entries[here]
            entry.action, entry.reward = int(self._actions[i]), float(self._rng.integers(-3, 4))
            chance = self._rng.random()
            entry.ended = "terminated" if chance < 0.1 else "truncated" if chance < 0.13 else ""
            lost_life = entry.ended == "terminated" and self.autoreset == "next_step" and self._rng.random() < 0.5
            entry.after = self.ledger.new(here)
            reward[i], self._frame[i] = entry.reward, entry.after
            terminated[i], truncated[i] = entry.ended == "terminated", entry.ended == "truncated"
            self._ended[i], self._keeps[i] = entry.ended, lost_life
            over[i] = bool(entry.ended) and not lost_life
            if entry.ended and self.autoreset == "same_step":
                final = picture(self._frame) if final is None else final
                final[i] = picture([entry.after])[0]
                self._frame[i], first[i], self._ended[i] = self.ledger.new(0), True, ""
        return self._step(reward, terminated, truncated, first, reset, over, final)

    def close(self):
        pass

    def _step(self, reward, terminated, truncated, first, reset, over, final):
        n = self.num_envs
        return Step(
            frame=picture(self._frame), reward=reward.astype(np.float32), terminated=terminated.copy(),
            truncated=truncated.copy(), first=first.copy(), reset=reset.copy(), game_over=over.copy(),
            score=np.zeros(n), length=np.zeros(n, np.int64), env_id=np.arange(n, dtype=np.int32), final=final,
        )  # fmt: skip


def wrong_rows(batch, ledger, opened, stack, n_step, gamma):
    """Return what is wrong with drawn transitions, by the ledger; `opened` are the frames of rows that open a game."""
    wrong, entries = [], ledger.entries
    for i, (obs, after) in enumerate(zip(number_of(batch.obs), number_of(batch.next_obs), strict=True)):
        here = int(obs[-1])
        value, steps, frame, ended = 0.0, 0, here, ""
        while steps < n_step and not ended and entries[frame].action >= 0:
            value += gamma**steps * entries[frame].reward
            ended, frame, steps = entries[frame].ended, entries[frame].after, steps + 1
        discount = 0.0 if ended == "terminated" else gamma**steps
        facts = {
            "action": entries[here].action == batch.action[i] >= 0,
            "reward": np.isclose(batch.reward[i], value, atol=1e-5),
            "discount": np.isclose(batch.discount[i], discount, atol=1e-6),
            "after": int(after[-1]) == frame and bool(ended or steps == n_step),
            "stack": stacked(obs, ledger, opened, stack),
            "stack after": stacked(after, ledger, opened, stack),
        }
        wrong += [(here, name) for name, right in facts.items() if not right]
    return wrong


def stacked(numbers, ledger, opened, stack):
    """Whether frames are those that led to the newest one, filled up with the first one of a game."""
    wanted, frame = [], int(numbers[-1])
    while len(wanted) < stack:
        wanted.insert(0, frame)
        before = ledger.entries[frame].before
        frame = frame if before == 0 or frame in opened else before
    return list(map(int, numbers)) == wanted
