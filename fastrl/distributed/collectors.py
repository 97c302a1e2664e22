"""Collectors in other processes, seen from the learner: requests in flight, the order of chunks, losses, statistics."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastrl.base.errors import ConfigError, RunError
from fastrl.config import DQNConfig
from fastrl.distributed.actor import Request
from fastrl.distributed.chunk import Chunk
from fastrl.dqn.collector import Rows
from fastrl.dqn.policy import Policy
from fastrl.envs.step import Envs

IN_FLIGHT = 2
"""Requests of one collector: it plays for one while the answer to the other is on its way."""
START_SECONDS = 180.0
"""A collector that starts may take as long, on top of the timeout: its node imports PyTorch, and opens games."""
POLL_SECONDS = 0.25
"""Longest wait between two looks at signals and clocks."""
LONGEST_PAUSE_SECONDS = 5.0
"""Before a collector that keeps failing is asked again."""
MOST_SILENCES = 5
"""Processes of each collector in a row that did not answer: then the run ends."""


class LostError(Exception):
    """An answer will not come: its collector, its node or the object is gone."""


class Engine(Protocol):
    """Starts collectors and carries questions and answers; `fastrl.distributed.engine.RayEngine` is one.

    A *ref* stands for an answer that may not be there yet.
    """

    notes: list[str]
    """What the user should know about the place where the collectors run."""

    def start(self, number: int) -> None:
        """Start a collector."""

    def open_games(self, number: int) -> Any:
        """Ask for `Actor.open_games`; return the ref."""

    def collect(self, number: int, request: Request, weights: Any) -> Any:
        """Ask for `Actor.collect`, `weights` as `put` returned it, or None; return the ref."""

    def put(self, weights: Mapping[str, NDArray[Any]]) -> Any:
        """Store weights for all collectors; return what stands for them."""

    def wait(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """Return those refs whose answers are there; if there are none, wait for one until the time is over."""

    def get(self, number: int, ref: Any) -> Any:
        """Return the answer of a ref that `wait` returned; `number` is the collector's.

        Raises
        ------
        LostError
            If it will not come.
        ConfigError, RunError
            What the collector raised.
        """

    def restart(self, number: int) -> None:
        """End a collector's process, however it hangs; a new one takes its place."""

    def close(self) -> None:
        """End all collectors, and what was started for them."""


@dataclass
class Slot:
    """What the learner knows of one collector."""

    number: int
    env_id: NDArray[np.int64]
    """[n] int64: its games among those of all collectors."""
    opens: NDArray[np.bool_]
    """[n] bool: the next row of the game opens one, since rows before it may be missing."""
    refs: deque[tuple[Any, float]] = field(default_factory=deque)
    """Requests in flight, the oldest first, and when they were made."""
    born: int | None = None
    seq: int = 0
    """Of the newest chunk added."""
    past: set[int] = field(default_factory=set)
    """Processes that were replaced: what they still send is dropped."""
    since: float = 0.0
    """When the newest answer was taken, or its process began."""
    answered: bool = False
    """Whether its process has ever answered."""
    failures: int = 0
    """Losses in a row."""
    silences: int = 0
    """Processes in a row that were replaced because they did not answer."""
    ask_at: float = 0.0
    """Do not ask it before."""
    rows: int = 0
    """Rows since the last report."""


class Collectors:
    """Games in other processes, as `fastrl.dqn.collector.Collector` has them in this one.

    Each collector owns `num_envs` games and their rings of the replay. Rows come one vector step of one collector at a
    time, so the learner learns between the vector steps of a chunk.

    Rows of a chunk that does not follow on from the one added before (one was lost, the collector is new, the run was
    resumed) do not continue the games in the replay: the first row of each game opens a new one there. A row whose
    action the games ignored is left out then, because only the row before it says so to the replay.

    Parameters
    ----------
    config : DQNConfig
        All settings; `collectors` is at least 1.
    engine : Engine
        Where they run; it is closed by `close`.
    envs : Envs
        Games of this process, to ask about shapes and actions; they are closed by `close`.
    wanted : dict
        What `Actor.open_games` of every collector must answer.
    check : callable
        Called at least every `POLL_SECONDS` while rows are waited for; raises to leave.
    clock : callable
        Seconds that only grow.

    Attributes
    ----------
    notes : list of str
        What to tell the user before the run begins.
    say : callable
        Takes a message about a collector that was lost.
    """

    def __init__(
        self,
        config: DQNConfig,
        engine: Engine,
        envs: Envs,
        wanted: dict[str, Any],
        *,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        n = config.num_envs
        self.envs, self.notes = envs, list(engine.notes)
        self.say: Callable[[str], None] = lambda text: None
        self._config, self._engine, self._wanted = config, engine, wanted
        self._check, self._clock = check, clock
        self._slots = [
            Slot(number, np.arange(n) + number * n, np.ones(n, np.bool_)) for number in range(config.collectors)
        ]
        self._opened = False
        self._short = list(self._slots)  # slots with room for a request, in the order in which it came up
        self._ready: deque[Slot] = deque()  # slots whose oldest answer is there
        self._turn = 0  # the slot whose chunk is next, where they take turns
        self._chunk: tuple[Slot, Chunk] | None = None
        self._step = 0  # of the chunk, the next one
        self._epsilon: float | NDArray[np.float64] = 1.0  # of the requests to come, as what follows
        self._version, self._weights = 0, None
        self._published_at, self._steps = 0, 0  # agent steps
        self._updates = 0
        self._reset_statistics()
        self.lost = self.restarted = 0

    def open_games(self) -> None:
        """Start all collectors and wait until their games are open.

        Raises
        ------
        ConfigError
            If one cannot open its games, or has other versions or other games than this process; or does not start.
        """
        if self._opened:
            return
        for slot in self._slots:
            self._engine.start(slot.number)
        refs = {slot.number: self._engine.open_games(slot.number) for slot in self._slots}
        until = self._clock() + START_SECONDS + self._config.collector_timeout
        while refs:
            self._check()
            for ref in self._engine.wait(list(refs.values()), POLL_SECONDS):
                number = next(number for number, known in refs.items() if known == ref)
                try:
                    found = self._engine.get(number, ref)
                except LostError:
                    refs[number] = self._engine.open_games(number)  # of the process that replaces it
                    continue
                del refs[number]
                self._compare(number, found)
            if refs and self._clock() > until:
                raise ConfigError(
                    f"--collectors is {self._config.collectors}, and {len(refs)} of them have not started within "
                    f"{until - self._started:.0f} seconds; give at most {self._config.collectors - len(refs)}, or a "
                    "cluster with more cores and memory"
                )
        self._opened = True
        for slot in self._slots:
            slot.since = self._clock()

    def _compare(self, number: int, found: dict[str, Any]) -> None:
        for name, value in self._wanted.items():
            if found[name] != value:
                raise ConfigError(
                    f"collector {number} plays {self._config.game} with {name} {found[name]}, this process with "
                    f"{value}; install the same packages on every node"
                )

    def start(self, policy: Policy) -> None:
        """Open the games."""
        self.open_games()

    def send(self, policy: Policy) -> None:
        """Ask every collector with room for a request for a chunk, by this policy's epsilon and weights.

        New weights are published every `weights_every_steps`, and after the first update.
        """
        self._epsilon, self._updates = policy.epsilon, policy.version
        due = self._steps - self._published_at >= self._config.weights_every_steps
        if policy.version and (due or not self._version):
            self._weights, self._version = self._engine.put(policy.weights()), policy.version
            self._published_at = self._steps
        self._ask()

    def recv(self) -> Rows:
        """Wait for a chunk, unless one is begun, and return its next vector step, whose rows may be fewer than n.

        Raises
        ------
        ConfigError, RunError
            What a collector raised.
        """
        while True:
            if self._chunk is None:
                self._chunk, self._step = self._next_chunk(), 0
            slot, chunk = self._chunk
            rows = chunk.rows(self._step, slot.env_id)
            self._step += 1
            if self._step == chunk.steps:
                self._chunk = None
            if slot.opens.any():
                rows = self._opening(slot, rows)
            if len(rows.action):
                slot.rows += len(rows.action)
                self._steps += len(rows.counted)
                return rows

    def _opening(self, slot: Slot, rows: Rows) -> Rows:
        """Let rows open games where rows before them are missing; leave those out that only these would explain."""
        keep = ~(slot.opens & rows.reset)
        rows.first[slot.opens] = True
        slot.opens &= ~keep
        return rows if keep.all() else rows.select(keep)

    def state(self) -> dict[str, Any] | None:
        """Return None: games of other processes cannot be saved."""
        return None

    def load_state(self, state: dict[str, Any] | None) -> bool:
        """Return False: the games start anew."""
        return False

    def close(self) -> None:
        """End all collectors."""
        try:
            self._engine.close()
        finally:
            self.envs.close()

    # --- questions and answers ------------------------------------------------------------------------

    def _ask(self) -> None:
        """Fill up the requests in flight of all slots with room, but for those that pause."""
        later = []
        for slot in self._short:
            now = self._clock()
            if now < slot.ask_at:
                later.append(slot)
                continue
            while len(slot.refs) < IN_FLIGHT:
                request = Request(self._config.chunk_steps, self._epsilon_of(slot.number), self._version)
                slot.refs.append((self._engine.collect(slot.number, request, self._weights), now))
        self._short = later

    def _epsilon_of(self, number: int) -> float | NDArray[np.float64]:
        """Return the share of random actions of a collector's games."""
        if not isinstance(self._epsilon, np.ndarray):
            return self._epsilon
        n = self._config.num_envs
        return self._epsilon[number * n : (number + 1) * n]

    def _next_chunk(self) -> tuple[Slot, Chunk]:
        """Wait for the chunk that is next and return it."""
        began = self._clock()
        while True:
            slot = self._next_ready()
            if slot is None:
                self._check()
                self._ask()  # those that paused
                continue
            chunk = self._take(slot)
            if chunk is not None:
                self._waited += self._clock() - began
                return self._slots[chunk.number], chunk

    def _next_ready(self) -> Slot | None:
        """Return a slot whose oldest answer is there, in turn if they take turns; None after a wait in vain."""
        if self._config.collectors_in_order:
            return self._slots[self._turn] if self._poll([self._slots[self._turn]]) else None
        if not self._ready:
            after = self._slots[self._turn :] + self._slots[: self._turn]  # none is always the first
            self._ready.extend(self._poll(after))
        return self._ready.popleft() if self._ready else None

    def _poll(self, slots: Sequence[Slot]) -> list[Slot]:
        """Return the slots whose oldest answer is there; replace those that have been silent for too long."""
        refs = [slot.refs[0][0] for slot in slots if slot.refs]
        ready = set(self._engine.wait(refs, POLL_SECONDS))
        self._seen_ready += len(ready)
        self._polls += 1
        now, found = self._clock(), []
        for slot in slots:
            if slot.refs and slot.refs[0][0] in ready:
                found.append(slot)
            elif slot.refs:
                patience = self._config.collector_timeout + (0.0 if slot.answered else START_SECONDS)
                if now - max(slot.refs[0][1], slot.since) > patience:
                    self._engine.restart(slot.number)
                    slot.silences += 1
                    self._forget(slot, f"has not answered for {patience:g} seconds")
        if slots and all(slot.silences >= MOST_SILENCES for slot in slots):
            raise RunError(
                f"no collector has answered, {MOST_SILENCES} processes of each in a row; if "
                f"{self._config.chunk_steps} steps of {self._config.num_envs} games take longer than "
                f"{self._config.collector_timeout:g} seconds, give a larger --collector-timeout, or a smaller "
                "--chunk-steps or --num-envs"
            )
        return found

    def _take(self, slot: Slot) -> Chunk | None:
        """Take the oldest answer of a slot; None if it was lost, or brings nothing new."""
        ref, _ = slot.refs.popleft()
        self._turn = (slot.number + 1) % len(self._slots)
        try:
            chunk: Chunk = self._engine.get(slot.number, ref)
        except LostError as error:
            self._forget(slot, f"is gone ({error})")
            self._turn = slot.number  # it is still its turn
            return None
        self._short.append(slot)
        slot.since, slot.answered = self._clock(), True
        slot.failures = slot.silences = 0
        return chunk if self._follows(self._slots[chunk.number], chunk) else None

    def _follows(self, slot: Slot, chunk: Chunk) -> bool:
        """Whether a chunk is new; what comes before it in its games may be missing, and `slot.opens` says so then."""
        if chunk.born in slot.past or (chunk.born == slot.born and chunk.seq <= slot.seq):
            return False
        if chunk.born != slot.born and slot.born is not None:
            slot.past.add(slot.born)
            self.restarted += 1
        if chunk.born != slot.born or chunk.seq != slot.seq + 1:
            slot.opens[:] = True
        slot.born, slot.seq = chunk.born, chunk.seq
        self._stale.append(self._updates - chunk.version)
        return True

    def _forget(self, slot: Slot, why: str) -> None:
        """Drop the requests of a collector that was lost; ask again after a pause that grows with each failure."""
        now = self._clock()
        if slot.failures == 0:
            self.lost += 1
            self.say(f"collector {slot.number} {why}; a new one takes its place")
        slot.refs.clear()
        slot.failures += 1
        slot.since, slot.answered = now, False
        slot.ask_at = now + min(0.1 * 2**slot.failures, LONGEST_PAUSE_SECONDS)
        if slot not in self._short:
            self._short.append(slot)

    # --- statistics -----------------------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """Return what happened since the last report, by key; ``time/`` marks what depends on the clock."""
        seconds = max(self._clock() - self._started, 1e-9)
        rates = np.array([slot.rows for slot in self._slots]) / seconds
        found = {
            "collectors/alive": float(sum(slot.failures == 0 for slot in self._slots)),
            "collectors/lost": float(self.lost),
            "collectors/restarted": float(self.restarted),
            "time/collectors_rows_per_second_least": float(rates.min()),
            "time/collectors_rows_per_second_median": float(np.median(rates)),
            "time/collectors_rows_per_second_most": float(rates.max()),
            "time/collectors_chunks_ready": self._seen_ready / max(self._polls, 1),
            "time/collectors_waiting": min(self._waited / seconds, 1.0),
        }
        if self._stale:
            found["collectors/staleness_updates"] = float(np.mean(self._stale))
        self._reset_statistics()
        return found

    def _reset_statistics(self) -> None:
        self._started = self._clock()
        self._waited = 0.0  # seconds of the learner
        self._seen_ready = self._polls = 0
        self._stale: list[int] = []
        for slot in self._slots:
            slot.rows = 0
