"""Saving a run: each checkpoint appears whole or not at all, while the run continues.

A saver is handed a snapshot and never sees the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastrl.base.background import Background
from fastrl.base.files import sync
from fastrl.dqn.checkpoint import pack_learner, pack_state, pack_weights
from fastrl.dqn.peers import ALONE, Peers
from fastrl.replay import PrioritizedReplayBuffer
from fastrl.replay.saves import Save
from fastrl.runs import checkpoints
from fastrl.runs.folder import RunFolder, no_room

LEAVE_SECONDS = 1.0  # that a thread has to stop saving, when the run leaves at once


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """A run between two steps, as a checkpoint keeps it (see `fastrl.dqn.checkpoint`)."""

    state: dict[str, Any]
    """JSON-able: counters, generators, callbacks; ``"network"`` holds the settings of the network."""
    weights: dict[str, Tensor] | None
    """State of the network to play with; None in a part of a learner that is not the first."""
    learner: dict[str, Any] | None = None
    """What `Learner.state` returned."""
    games: dict[str, Any] | None = None
    """State of the games, if they can be saved: nested dicts of arrays and of what JSON has."""
    replay: PrioritizedReplayBuffer | None = None
    """The replay, if it is saved along; rows may be added to it as soon as the `Draft` is made."""


class Saver:
    """Writes checkpoints into a run's folder, one at a time.

    Of several learners each writes its part, in a thread. Once all are written, which `settle` waits for, the first
    learner puts them together and lets the checkpoint appear.

    Parameters
    ----------
    folder : RunFolder
        The run's.
    keep : int
        Numbered checkpoints to keep.
    earlier : Path or None
        The newest save of the replay, whose files the next one shares.
    on_whole : callable
        Called with the folder of a checkpoint that has become whole, in the thread that calls `settle`.
    peers : Peers, optional
        The run's learners.
    """

    def __init__(
        self,
        folder: RunFolder,
        keep: int,
        earlier: Path | None,
        on_whole: Callable[[Path], None],
        peers: Peers = ALONE,
    ) -> None:
        self._folder, self._keep, self._earlier, self._on_whole = folder, keep, earlier, on_whole
        self._peers = peers
        self._draft: Draft | None = None  # what is being written
        self._saving: Background[Path] | None = None

    @property
    def in_progress(self) -> bool:
        """Whether a checkpoint is being written, or has been and `settle` has not been told."""
        return self._saving is not None

    @property
    def written(self) -> bool:
        """Whether the checkpoint in progress is written, or failed: `settle` would not wait for the disk."""
        return self._saving is not None and self._saving.done

    def save_weights(self, name: str, snapshot: RunSnapshot) -> Path:
        """Write a named checkpoint of the snapshot's state and weights alone, here and now; return its folder."""
        return Draft(self._folder, name, RunSnapshot(state=snapshot.state, weights=snapshot.weights)).finish()

    def save(self, name: str, snapshot: RunSnapshot, *, timed: bool = False) -> Path:
        """Start writing a numbered checkpoint in a thread; return where it will be. The next one replaces a timed one.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        assert self._saving is None
        draft = Draft(self._folder, name, snapshot, self._earlier, timed=timed, rank=self._peers.rank)

        def finish() -> Path:
            if self._peers.several:
                draft.write()
                return draft.folder
            whole = draft.finish()
            self._folder.prune(self._keep)
            return whole

        self._draft, self._saving = draft, Background(finish, "fastrl-checkpoint")
        self._saving.start()  # once it is known to `give_up`
        return draft.folder

    def settle(self, *, wait: bool = True) -> None:
        """Tell of a checkpoint that has become whole, or raise what kept it from that; wait for one in progress.

        Several learners must call it at the same step; without ``wait``, once it is `written` by all of them.
        """
        if self._saving is None or not (wait or self._saving.done):
            return
        self._saving.wait()  # may be interrupted: it is in progress until then
        saving, draft, self._saving, self._draft = self._saving, self._draft, None, None
        whole = saving.result()
        if self._peers.several:
            assert draft is not None
            self._peers.wait()  # until all parts are on the disk
            if self._peers.leads:
                draft.put_together(self._peers.count)
                self._folder.prune(self._keep)
            self._peers.wait()
        replay = checkpoints.part(whole, self._peers.rank) / checkpoints.REPLAY
        if replay.exists():
            self._earlier = replay
        self._on_whole(whole)

    def rescue(
        self, error: Exception, name: str, take: Callable[[bool], RunSnapshot], say: Callable[[str], None]
    ) -> None:
        """Save what was learned before an error ends the run; a message says what was kept.

        Parameters
        ----------
        error : Exception
            What ends the run.
        name : str
            Of the checkpoint; one that exists holds this step already, with its games and its replay.
        take : callable
            Takes the snapshot, with the replay or without it.
        say : callable
            Takes the message.
        """
        try:
            self.settle()
        except Exception as another:
            say(f"the checkpoint in progress could not be finished: {another}")
        here = self._folder.checkpoints / name
        for replay in (False,) if no_room(error) and not here.exists() else (True, False):
            try:
                if not here.exists():
                    self.save(name, take(replay))
                    self.settle()
            except Exception as another:
                say(f"what was learned could not be saved: {another}")
            else:
                kept = "what was learned is saved" if replay else "what was learned is saved without its replay"
                say(f"{type(error).__name__} ended the run; {kept}; resume with: {self._folder.resume_command}")
                return

    def give_up(self) -> None:
        """Leave a checkpoint in progress unfinished."""
        if self._draft is not None and self._saving is not None:
            self._draft.give_up()
            self._saving.wait(LEAVE_SECONDS)
            self._draft = self._saving = None

    def wait(self) -> None:
        """Wait until no thread writes."""
        if self._saving is not None:
            self._saving.wait()


class Draft:
    """A checkpoint that is being written: a hidden folder, which `finish` moves to its place.

    Making it writes all but the replay's frames, as it is now. `finish` may run in a thread while everything continues.

    Parameters
    ----------
    run_folder : RunFolder
        Folder of the run.
    name : str
        Name of the checkpoint's folder; one that exists is replaced.
    snapshot : RunSnapshot
        What is written. Checkpoints that exist lose their replay once one with a replay is whole.
    earlier : Path, optional
        An earlier save of this replay; see `Save`.
    timed : bool
        Whether the next checkpoint replaces this one.
    rank : int
        Of the learner whose part this is.

    Attributes
    ----------
    folder : Path
        Where the checkpoint will be.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        name: str,
        snapshot: RunSnapshot,
        earlier: Path | None = None,
        *,
        timed: bool = False,
        rank: int = 0,
    ) -> None:
        self._run_folder, self.folder = run_folder, run_folder.checkpoints / name
        self._partial = checkpoints.new_partial(self._place(rank))
        self._replay: Save | None = None
        with checkpoints.or_removed(self._partial):
            if snapshot.weights is not None:
                self._write("weights.safetensors", pack_weights(snapshot.weights, snapshot.state["network"]))
            if snapshot.learner is not None:
                self._write("learner.safetensors", pack_learner(snapshot.learner))
            if snapshot.games is not None:
                self._write("games.safetensors", checkpoints.pack(snapshot.games))
            if timed:
                self._write(checkpoints.TIMED, b"The next checkpoint replaces this one: --checkpoint-every-minutes.\n")
            self._write("state.json", pack_state(snapshot.state))
            if snapshot.replay is not None:
                self._replay = snapshot.replay.begin_save(self._partial / checkpoints.REPLAY, earlier)

    def finish(self) -> Path:
        """Write the rest, move the folder to its place in one move, and return it."""
        self.write()
        return self.put_together()

    def write(self) -> None:
        """Write the rest and wait for the disk."""
        with checkpoints.or_removed(self._partial):
            if self._replay is not None:
                self._replay.write()
            checkpoints.settle(self._partial)

    def put_together(self, learners: int = 1) -> Path:
        """Move this folder, with the parts of the other learners in it, to its place in one move, and return it."""
        with checkpoints.or_removed(self._partial):
            for rank in range(1, learners):
                os.replace(checkpoints.hidden(self._place(rank)), checkpoints.part(self._partial, rank))
            if learners > 1:
                sync(self._partial)
            checkpoints.move(self._partial, self.folder)
        if self._replay is not None:
            for other in self._run_folder.numbered():
                if other != self.folder:
                    for replay in checkpoints.replays(other):
                        checkpoints.remove(replay)
        return self.folder

    def _place(self, rank: int) -> Path:
        """Return the path that the hidden folder of a learner's part is named after."""
        return self.folder.with_name(f"{self.folder.name}.rank-{rank}") if rank else self.folder

    def give_up(self) -> None:
        """Let a `finish` that is writing frames end with an error."""
        if self._replay is not None:
            self._replay.close()

    def _write(self, name: str, content: bytes) -> None:
        (self._partial / name).write_bytes(content)  # `finish` sees to it that it is on the disk
