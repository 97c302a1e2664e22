"""Replay buffers over unstacked frames: add vector steps, draw n-step transitions of stacked frames."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastrl.base import forks
from fastrl.base.checks import assert_that, integer, number
from fastrl.replay.arrays import as_bytes, from_list
from fastrl.replay.batch import Batch, BatchPool
from fastrl.replay.checks import (
    Autoreset,
    Seed,
    StepRows,
    check_index,
    check_many_rows,
    check_rows,
    check_settings,
    generator,
    path_of,
    step_flags,
    unwritable,
)
from fastrl.replay.hindsight import Hindsight, HindsightBatch, Relabeller
from fastrl.replay.prefetch import Prefetcher
from fastrl.replay.ring import AppendedArray, Ring
from fastrl.replay.rows import RowReader, Rows
from fastrl.replay.saves import Save, archive
from fastrl.replay.saves.folder import ReplayFolder, require_none_in, settings_in
from fastrl.replay.saves.save import Snapshot
from fastrl.replay.sequences import Asked, SequenceBatch, SequenceDrawer
from fastrl.replay.spaces import settings_of
from fastrl.replay.stores.by_name import makers, require_mmap
from fastrl.replay.stores.layout import Extra, Layout, Shapes, nesting
from fastrl.replay.stores.mapped import MmapStore
from fastrl.replay.stores.ram import RamStore
from fastrl.replay.stores.several import Records, SeveralStores
from fastrl.replay.stores.store import FrameStore, Store
from fastrl.replay.sum_tree import SumTree

FORK_PATIENCE_S = 10.0
"""Seconds that a fork waits for another thread's call of a buffer to end."""
PIECE = 1 << 24
"""Bytes of rows that `ReplayBuffer.extend` copies at a time where it cannot add them in one call."""


class Reader(Protocol):
    """Reads frames in another thread while rows are added: a save, or a batch that was prefetched."""

    def wait_for(self, slots: NDArray[np.int64]) -> bool:
        """Wait while a frame in these slots is yet to be read; the buffer's lock is held.

        Returns True if the lock was released meanwhile. Other threads may have added rows then, so the caller must ask
        again, with the slots that come next now.
        """


class _Barred:
    """The lock of a buffer that may not be used: every call raises."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __enter__(self) -> None:
        raise RuntimeError(self.reason)

    def __exit__(self, *_: object) -> None:
        """Nothing is entered."""

    def acquire(self, timeout: float) -> bool:
        return False


_TORN = (
    "this process was forked while another thread was inside a call of this buffer, which may have been left half done "
    "here; fork while no thread is inside one, or load a saved buffer"
)
_LEFT_TO_PARENT = (
    "this process was forked, and its parent goes on changing the files of this buffer; save the buffer and load the "
    "save here"
)
_CLOSED = "this buffer was closed; from_folder opens it again"


class ReplayBuffer:
    """Uniform replay of the newest rows of many environments.

    One row is one environment's part of one vector step: the newest *frame* of its observation (a batch stacks
    frames when it is drawn), the action taken there, and the reward and end that followed. A row can be drawn exactly
    while all its fields can be rebuilt: from when its n-step window is closed, by n further frames or by the end of the
    episode, until the oldest frame of its stack is overwritten.

    Parameters
    ----------
    capacity : int
        Rows over all environments; each has a ring of ``capacity // num_envs``.
    num_envs : int
        Number of environments, N; ``env_id`` names them 0 to ``num_envs - 1``.
    obs_shape, obs_dtype
        Shape and dtype of one frame. Of an observation of several arrays, a dictionary or tuple of shapes, nested as
        the observations are; ``obs_dtype``, ``stack`` and ``store`` may be nested alike, or one value for all.
    action_shape, action_dtype
        Shape and dtype of one action.
    stack : int
        Frames in an observation. A row can be drawn while those of its deepest stack are held.
    stack_padding : {"first", "zero"}
        What fills a stack before the first frame of a game: that frame again, or zeros.
    n_step : int
        Rewards summed into one return.
    gamma : float
        Discount per step.
    autoreset : {"next_step", "same_step", "disabled"}
        What the row after a done holds. ``"next_step"`` (EnvPool, Gymnasium's default): the final
        observation and an ignored action. ``"same_step"`` and ``"disabled"``: the first observation of the new
        episode; the final one comes with the done itself, as ``final_obs``.
    seed : int, sequence of int, SeedSequence or None
        Seed of the draws. The same seed and calls give the same batches, to the bit; calls that fail do not count.
        `reseed` sets another.
    store : {"ram", "lz4", "mmap"} or callable
        Where frames are kept: in memory as they come (`RamStore`), compressed in memory (`Lz4Store`), in files of
        ``folder`` (`MmapStore`), or in another `FrameStore`, which the callable makes (`MakeStore`). A batch's ``obs``
        and ``next_obs`` are what the store makes; their values do not depend on it.
    folder : str or Path, optional
        With ``store="mmap"``: where the buffer lives, with all arrays of its rows. If the folder holds one, which must
        have the same settings, it is taken up as it was at its last `flush`, generator included; if not, it is made.
    extra : dict, optional
        Fields of one's own, each a name with (shape, dtype): `add` takes a value of each in every row, and a batch has
        them in ``extra`` (see `ExtraBatch`). They are kept in memory, or in the folder.
    next_extra : sequence of str
        Those of the fields that a batch also has at the state after the last step, in ``next_extra``.

    Raises
    ------
    ValueError
        If a setting is out of range, or is not that of the buffer in ``folder``; the message names it.
    OSError
        If ``folder`` is used by another process, cannot be written to, or is on a disk that is too small.
    ImportError
        If ``store`` needs a package that is not installed.
    MemoryError
        If there is too little memory for the capacity.
    """

    _kind = "uniform"
    """What files call buffers of this class, and of classes derived from it."""
    _lock: threading.RLock  # calls of several threads take turns
    _save: Save | None  # in progress
    _appender: Any  # the kernel that adds in one call, or None

    def __init__(
        self,
        *,
        capacity: int,
        num_envs: int,
        obs_shape: Shapes,
        obs_dtype: DTypeLike | Mapping[str, Any] | Sequence[Any] = np.uint8,
        action_shape: tuple[int, ...] = (),
        action_dtype: DTypeLike = np.int64,
        stack: int | Mapping[str, Any] | Sequence[Any] = 1,
        stack_padding: Literal["first", "zero"] = "first",
        n_step: int = 1,
        gamma: float = 0.99,
        autoreset: Autoreset = "next_step",
        seed: Seed = None,
        store: Store = "ram",
        folder: str | Path | None = None,
        extra: Extra | None = None,
        next_extra: Sequence[str] = (),
    ) -> None:
        settings = self.settings = check_settings(
            capacity=capacity,
            num_envs=num_envs,
            obs_shape=obs_shape,
            obs_dtype=obs_dtype,
            action_shape=action_shape,
            action_dtype=action_dtype,
            stack=stack,
            stack_padding=stack_padding,
            n_step=n_step,
            gamma=gamma,
            autoreset=autoreset,
            extra=extra,
            next_extra=next_extra,
        )
        rng, layout = generator(seed), Layout(settings)
        num_envs, n_step = settings["num_envs"], settings["n_step"]
        action_shape, act_dtype = settings["action_shape"], np.dtype(settings["action_dtype"])
        rows = settings["capacity"] // num_envs
        if folder is None:
            make = [*makers(store, layout.obs), *[RamStore] * (len(layout.fields) - layout.obs_count)]
        else:
            require_mmap(store)
            place = path_of("folder", folder)
        self._folder: ReplayFolder | None = None
        self._layout, self._single = layout, layout.single
        self._final_inside = autoreset == "next_step"  # the final observation comes as a row of its own
        try:
            self._ring = Ring(num_envs, rows, layout.stack, n_step, action_shape, act_dtype)
            self._tree = SumTree(num_envs * rows)
            self._drawable, self._new_weight = 0, 1.0  # rows; the weight of one that becomes drawable
            self._begin()
            if folder is not None:
                self._folder = ReplayFolder(place, self._kind, self.settings)
                make = [self._folder.make] * len(layout.fields)
            stores = [
                make_store(num_envs * rows, field.shape, field.dtype)
                for make_store, field in zip(make, layout.fields, strict=True)
            ]
        except MemoryError as error:
            raise MemoryError(
                f"capacity is {capacity}, too much for memory ({error.__cause__ or error}); give less"
            ) from error
        stacks = [max(1, field.stack) for field in layout.fields]
        self._store: Any = stores[0] if layout.single else SeveralStores(stores, stacks)
        self._pool = BatchPool(layout, action_shape, act_dtype, [store.empty for store in stores])
        self._rng = rng
        self._before = self._rng.bit_generator.state  # as it was before the latest draw
        self._set_helpers()
        if self._folder is not None:
            self._join(self._folder)

    @classmethod
    def for_spaces(cls, observation_space: Any, action_space: Any, **settings: Any) -> Self:
        """Return a buffer for the spaces of one environment, such as Gymnasium's (which is not imported).

        Parameters
        ----------
        observation_space
            Space of one frame: ``Dict`` and ``Tuple`` give observations nested alike.
        action_space
            Space of one action; not a ``Dict`` or ``Tuple``.
        **settings
            All other arguments of the class; one that the spaces give wins over them.

        Raises
        ------
        ValueError
            If a space holds no arrays of one shape, or a setting is out of range.
        """
        return cls(**settings_of(observation_space, action_space) | settings)

    def __len__(self) -> int:
        """Rows held."""
        return len(self._ring)

    @property
    def drawable(self) -> int:
        """Rows that can be drawn now."""
        return self._drawable

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the full buffer takes, without the pool of batches; compressed frames count as now."""
        frames: int = self._store.nbytes
        return frames + self._ring.nbytes + self._tree.nbytes

    def add(
        self,
        obs: Any,
        action: ArrayLike,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        first: ArrayLike | None = None,
        final_obs: Any = None,
        env_id: ArrayLike | None = None,
        extra: Mapping[str, ArrayLike] | None = None,
        final_extra: Any = None,
    ) -> None:
        """Add one vector step: one row for each of n environments.

        Costs O(n (stack + n_step)) and n copies of a frame.

        Parameters
        ----------
        obs : [n, *obs_shape] obs_dtype
            Newest frame of the observation in which ``action`` was taken. Observations of several arrays are nested as
            ``obs_shape`` is, with such arrays inside.
        action : [n, *action_shape]
            Must be valid in every row. In the row after a done with ``autoreset="next_step"`` it is ignored, as are
            reward, terminated and truncated.
        reward : [n] float
            Reward of the action.
        terminated, truncated : [n] bool
            How the action ended the episode, if it did; terminated wins over truncated.
        first : [n] bool, optional
            Whether ``obs[i]`` opens a new game: stacks do not look back past it. Default: the row that opens an
            episode does. Pass False there after a lost life that ended an episode but not the game. True without a
            done before it abandons the current episode: rows whose future is then unknown are never drawn.
        final_obs : [n, *obs_shape] or object array with None, optional
            The frame after a done, for ``autoreset`` "same_step" and "disabled" only; rows without a done are not read.
            If it is missing for a terminated row, its ``next_obs`` repeats its newest frame (its discount is 0), and
            the row after it must open a new game: a stack that continues needs every frame. Of several arrays: nested
            with such arrays inside, or one entry for each row, nested or None.
        env_id : [n] int, optional
            Environments of these rows, none twice (default: all, in order).
        extra : dict of [n, *shape]
            Fields of one's own at ``obs``, if the buffer has any.
        final_extra : dict of [n, *shape], or one dict or None a row, optional
            Those of the fields that batches have in ``next_extra``, after a done; as ``final_obs``. If it is missing
            for a terminated row, that row's own values are repeated.

        Raises
        ------
        ValueError
            If an argument does not fit, or a truncated row comes without its final frame. Nothing has changed then;
            nor has it if the store cannot write.
        RuntimeError
            If a row would wait for ever for a save that was begun and is never written (see `begin_save`).
        """
        if self._single and extra is None and final_extra is None:
            rows, finals = obs, final_obs
        else:
            rows, finals = self._layout.rows(obs, extra), self._layout.finals(final_obs, final_extra)
        with self._lock:
            if self._prefetcher.in_flight or self._save is not None:
                self._wait_for_readers()
            if self._mapped:
                self._prepare_files(self._rows_a_step)
            if self._appender is not None:
                gained = self._appender.add(
                    rows, action, reward, terminated, truncated, first, finals, env_id, self._new_weight
                )
                if gained is None and list in map(type, (action, reward, terminated, truncated, first, env_id)):
                    gained = self._appender.add(
                        rows,
                        from_list(action),
                        from_list(reward),
                        from_list(terminated),
                        from_list(truncated),
                        from_list(first),
                        finals,
                        from_list(env_id),
                        self._new_weight,
                    )
                if gained is not None:
                    self._drawable += gained
                    return
            if self._single:
                rows, finals = (rows,), None if finals is None else (finals,)
            checked = check_rows(
                self.settings, self._layout, rows, action, reward, terminated, truncated, first, finals, env_id
            )
            self._ring.check_first(checked.env, checked.first)
            self._append(iter([checked]))

    def extend(
        self,
        obs: Any,
        action: ArrayLike,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        first: ArrayLike | None = None,
        final_obs: Any = None,
        env_id: ArrayLike | None = None,
        extra: Mapping[str, ArrayLike] | None = None,
        final_extra: Any = None,
    ) -> None:
        """Add T vector steps at once, as T calls of `add` would.

        Every step is checked before any is added. If the arrays match exactly, as for `add`, the rows are copied in one
        call into C; others are first converted.

        Parameters
        ----------
        obs, action, reward, terminated, truncated, first, extra
            As for `add`, with T as one more axis before all others: ``obs [T, n, *obs_shape]``, ``reward [T, n]``.
        final_obs, final_extra : arrays [T, n, ...], or a sequence of T
            As for `add`, with this axis, or a sequence with one entry for each step: what `add` takes, or None.
        env_id : [n] int, optional
            Environments of the rows of every step, none twice (default: all, in order).

        Raises
        ------
        ValueError
            If an argument does not fit. Nothing has changed then.
        RuntimeError
            As for `add`.
        """
        layout = self._layout
        arrays, finals = layout.rows(obs, extra), layout.many_finals(final_obs, final_extra)
        ends = step_flags(terminated)
        with self._lock:
            self._wait_for_readers(len(ends))
            # Files are prepared for the rows that will really come, so for them all is checked before.
            plain = not self._mapped and not isinstance(finals, list)
            if plain and self._extend(arrays, action, reward, ends, truncated, first, finals=finals, env_id=env_id):
                return
            rows = check_many_rows(
                self.settings, layout, arrays, action, reward, ends, truncated, first, finals, env_id
            )
            gap = None
            for step in rows.steps():
                self._ring.check_first(step.env, step.first, gap)
                # Of a final observation that comes as a row, the frame is always there.
                gap = np.zeros(len(step.env), np.bool_) if self._final_inside else step.gaps(layout.fields)
            if isinstance(finals, list):
                finals = rows.finals_of(layout.fields)
            columns = (rows.arrays, rows.action, rows.reward, *rows.flags())
            if self._mapped:
                self._prepare_files(rows.count(self._ring.num_envs, ends=not self._final_inside))
            if not self._extend(*columns, finals=finals, env_id=rows.env):
                self._append(rows.steps())

    def rows(self, chunk: int = 4096) -> Iterator[Rows]:
        """Return an iterator over all rows held: environment by environment, the oldest first, ``chunk`` at a time.

        Rows may be added meanwhile, in the loop or by another thread:

        * The rows that come are those held at this call, whole vector steps; rows added later do not come.
        * Each comes at most once, as it was added, and those of an environment in order. A row that was overwritten
          before its chunk is left out, with all older ones of its environment. So rows are missing from the oldest on,
          or between two chunks, where ``index`` then leaps by more than the number of environments.
        * A chunk is read as a whole between two calls of other threads, which wait meanwhile, for the time of copying
          ``chunk`` rows. Nothing is held between two chunks.
        * ``drawable`` is that of the moment at which the chunk is read; all else of a row never changes.
        * To have all rows, none left out, add none until the last chunk: a rest of a ring that is full is overwritten
          from its oldest row on.

        Each thread needs an iterator of its own.

        Parameters
        ----------
        chunk : int
            Rows at a time, at least 1; each time in new arrays.

        Raises
        ------
        ValueError
            If ``chunk`` is out of range.
        RuntimeError
            If the buffer may not be used, from the moment on at which it was closed or forked (`close`).
        """
        size = integer("chunk", chunk)
        return RowReader(self._ring, self._layout, self._stores, lambda: self._lock, self._prefetcher.wait).chunks(size)

    def sample(self, batch_size: int, out: Batch | None = None) -> Batch:
        """Draw transitions; every drawable row has the same probability, and all weights are 1.

        Rows come in slot order, one from each of ``batch_size`` equal strata. Costs
        O(B (log capacity + stack + n_step)) and 2 B stack copies of a frame.

        Parameters
        ----------
        batch_size : int
            B, at least 1.
        out : Batch, optional
            NumPy arrays to write into, for example over pinned memory, whatever the store. Default: arrays from a
            pool, which reuses them only once nothing refers to them; a batch that you hold is never overwritten.

        Raises
        ------
        ValueError
            If no row can be drawn yet, ``out`` does not fit, or another batch was prefetched.
        """
        return self._sample({"batch_size": integer("batch_size", batch_size)}, out)

    def empty_batch(
        self, batch_size: int, empty: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]] | None = None
    ) -> Batch:
        """Return a batch of arrays for ``out`` of `sample` and `prefetch`; what they hold is not set.

        Parameters
        ----------
        batch_size : int
            B, at least 1.
        empty : callable, optional
            ``empty(shape, dtype)`` makes the memory of each array, for example pinned. Default: as batches have it.

        Raises
        ------
        ValueError
            If ``batch_size`` is less than 1.
        MemoryError
            If there is too little memory.
        """
        return self._pool.make(integer("batch_size", batch_size), empty)

    def prefetch(self, batch_size: int, out: Batch | None = None) -> None:
        """Draw the batch that the next `sample` returns, and let a thread copy its frames in the background.

        Rows and weights are drawn at once, exactly as `sample` would: the same seed gives the same batches, prefetched
        or not. A row added later waits only where it would overwrite a frame that is still to be copied.

        Parameters
        ----------
        batch_size : int
            B, at least 1; `sample` must then be called with the same, and without ``out``.
        out : Batch, optional
            Arrays to write into, as for `sample`, which returns them.

        Raises
        ------
        ValueError
            If no row can be drawn yet, ``out`` does not fit, or a batch that was prefetched has not been taken.
        """
        self._prefetch({"batch_size": integer("batch_size", batch_size)}, out)

    def sample_sequences(
        self, batch_size: int, length: int, burn_in: int = 0, *, period: int = 1, stacked: bool = True
    ) -> SequenceBatch:
        """Draw stretches of up to ``length`` steps of one game, and up to ``burn_in`` steps before each.

        A row is drawn as by `sample`, and with ``period=1`` the stretch starts there. Otherwise it starts at the first
        row of the same game since the last multiple of ``period`` in that environment's count of rows, or the first
        after it that may be drawn. So starts are ``period`` rows apart, and each game has one at its first row.

        A game ends a stretch, and burn-in does not reach back past its first row; a lost life does neither. The place
        of the final observation of a lost life has ``mask`` False. A row whose game is still in progress is drawn once
        it has ``length`` more steps.

        Costs O(B (log capacity + period + burn_in + length + stack) + N length log capacity), and one copy of each
        frame, whatever the stack.

        Parameters
        ----------
        batch_size : int
            B, at least 1.
        length : int
            T, steps of a stretch, at least 1.
        burn_in : int
            Steps before it, from 0 up. ``mask`` is False where a game has fewer, or their frames are overwritten.
        period : int
            Rows between two starts, from 1 to ``length``.
        stacked : bool
            Whether ``obs`` has stacks, or each frame once (see `SequenceBatch`).

        Raises
        ------
        ValueError
            If an argument is out of range, if one environment has too few rows for a stretch, or if none can be drawn.
            Nothing has changed then.
        MemoryError
            If there is too little memory.
        """
        return self._sample_sequences(Asked(batch_size, length, burn_in, period, stacked))

    def sample_hindsight(self, batch_size: int, hindsight: Hindsight) -> HindsightBatch:
        """Draw transitions, as `sample`, of which a share gets a goal that was achieved in the same episode.

        The observations are a dictionary with the goal that a state achieves and the desired one. A new goal is the
        achieved one of a row of the same episode that is held, by the strategy (see `Hindsight`); of an episode in
        progress, its newest row counts as the last. Each row of the episode has the same chance. The rewards of all
        ``n_step`` steps are computed anew, by one call of the user's function for the whole batch.

        Costs what `sample` does, O(B (episode length + n_step)) and B (1 + n_step) copies of a goal.

        Parameters
        ----------
        batch_size : int
            B, at least 1.
        hindsight : Hindsight
            Goals, strategy, share and reward.

        Raises
        ------
        ValueError
            As `sample`; if the observations have no such goals; or if a function of the user's returns what does not
            fit. Nothing has changed then, the generator included.
        RuntimeError
            If the user's function added rows to this buffer.
        """
        return self._sample_hindsight({"batch_size": integer("batch_size", batch_size)}, hindsight)

    def reseed(self, seed: Seed) -> None:
        """Draw from now on as a buffer of the same rows and priorities that was built with this seed.

        For worker processes: each has a copy of the buffer, generator included, so that all draw the same batches
        unless each is given a seed of its own, such as ``np.random.SeedSequence(seed, spawn_key=(worker,))`` (what
        `SeedSequence.spawn` gives child number ``worker``) or ``torch.utils.data.get_worker_info().seed``.

        Parameters
        ----------
        seed : int, sequence of int, SeedSequence or None
            As for the class. None: unpredictable draws.

        Raises
        ------
        ValueError
            If ``seed`` is no seed, or a batch that was prefetched has not been taken. Nothing has changed then.
        """
        rng = generator(seed)
        with self._lock:
            self._prefetcher.require_none("reseed")
            self._rng, self._before = rng, rng.bit_generator.state

    def set_n_step(self, n_step: int) -> None:
        """Draw returns over ``n_step`` steps from now on; rows that become drawable count as new. Reads every row.

        Raises
        ------
        ValueError
            If ``n_step`` is less than 1, or the capacity is too small for it. Nothing has changed then.
        """
        with self._lock:
            settings = check_settings(**self.settings | {"n_step": n_step})
            changed = self._ring.set_n_step(settings["n_step"])
            self.settings = settings
            self._weigh(changed)
            self._set_kernels()

    def set_gamma(self, gamma: float) -> None:
        """Discount rewards by ``gamma`` per step from now on, in every row; costs O(n_step), reads no row.

        A batch that was prefetched was drawn before and keeps its returns.

        Raises
        ------
        ValueError
            If ``gamma`` is no number from 0 to 1. Nothing has changed then.
        """
        gamma = number("gamma", gamma, 1.0)
        with self._lock:
            self._take_settings(self.settings | {"gamma": gamma})

    def age(self, index: ArrayLike) -> NDArray[np.int64]:
        """Return how many rows their environments have added since the rows named ``index [B]``, ``[B] int64``."""
        with self._lock:
            return self._ring.age(check_index(index))

    def check(self) -> None:
        """Raise AssertionError unless rings, tree and counters agree (reads everything but the frames)."""
        with self._lock:
            self._ring.check()
            self._tree.check()
            drawable = self._ring.drawable != 0
            assert_that(
                np.array_equal(self._tree.weights > 0, drawable), "the tree weighs other rows than may be drawn"
            )
            assert_that(self._drawable == drawable.sum(), "the count of drawable rows is off")

    def save(self, path: str | Path) -> None:
        """Write everything, generator included, to one file, atomically (see `load`).

        Raises
        ------
        ValueError
            If a batch that was prefetched has not been taken: a loaded buffer could not return it; or if the path is
            none, or a folder's, a device's or a pipe's.
        OSError
            If the file cannot be written; a file that was there before is left as it was.
        """
        file = path_of("path", path)
        with self._lock:
            self._prefetcher.require_none("save")
            self._in_save = True
            try:
                archive.write_file(file, self._kind, self.settings, self._state(), self._frames, self._ring.held)
            except OSError as error:
                raise unwritable("path", file, error) from error
            finally:
                self._in_save = False

    def begin_save(self, folder: str | Path, earlier: str | Path | None = None) -> Save:
        """Begin a save into a folder that writes only new frames, in a thread if you like, while rows are added.

        Copies all but the frames, 24 bytes a row. The save that it returns must be written or closed (see
        `fastrl.replay.saves.Save`); `load` takes the folder once it is written. An `add` that would overwrite a row not
        written yet waits for it: a thread that adds more rows than are free must not be the one that writes them later.

        Parameters
        ----------
        folder : str or Path
            Where to; it is made here.
        earlier : str or Path, optional
            An earlier save of this buffer, or what the buffer was loaded from. Its files of frames are linked, not
            written again, where possible.

        Raises
        ------
        ValueError
            If a batch that was prefetched has not been taken, another save of this buffer is in progress, or a path is
            none.
        OSError
            If the folder exists or cannot be made.
        """
        place, before = path_of("folder", folder), None if earlier is None else path_of("earlier", earlier)
        with self._lock:
            self._prefetcher.require_none("save")
            if self._save is not None:
                raise ValueError("a save is in progress; write or close it before you begin another")
            snapshot = Snapshot(
                kind=self._kind,
                settings=self.settings,
                state={name: copy.deepcopy(value) for name, value in self._state().items()},
                rows=self._ring.rows,
                count=self._ring.count.copy(),
                oldest=self._ring.oldest,
                held=self._ring.held,
                lock=self._lock,
                gather=self._gather_saved,
                release=self._release_save,
            )
            try:
                save = self._save = Save(snapshot, place, before)
            except OSError as error:
                raise unwritable("folder", place, error) from error
            return save

    def flush(self) -> None:
        """Write all that is not in files yet into the buffer's folder: what a crash leaves is what was flushed.

        First the frames that the system has not written by itself are written, then all but the frames, 24 bytes a row,
        in one move. Other threads may use the buffer meanwhile. After a crash, rows that were overwritten since are
        gone, and up to a thirty-second of each ring more; the next rows open new games.

        Raises
        ------
        ValueError
            If the buffer has no folder, or a batch that was prefetched has not been taken.
        OSError
            If the disk fails or is full. What was flushed before is left as it was.
        """
        folder = self._folder_of("flush")
        count = np.zeros(0, np.int64)

        def take() -> tuple[dict[str, Any], int]:
            nonlocal count
            with self._lock:
                self._prefetcher.require_none("flush")
                count = self._ring.count.copy()
                folder.set_settings(self.settings)
                return {name: copy.deepcopy(value) for name, value in self._state().items()}, self._ring.held

        folder.flush(take)
        with self._lock:
            if np.array_equal(count, self._ring.count):
                folder.release(count)

    def close(self) -> None:
        """Flush, and give the folder free; no other call may follow but another `close`, which does nothing.

        Raises
        ------
        ValueError
            As `flush`, and if a save is in progress.
        OSError
            As `flush`.
        """
        if getattr(self._lock, "reason", None) == _CLOSED:
            return
        folder = self._folder_of("close")
        with self._lock:
            if self._save is not None:
                raise ValueError("a save is in progress; write or close it before you close the buffer")
        self.flush()
        with self._lock:
            self._lock, self._appender = _Barred(_CLOSED), None  # type: ignore[assignment]
            folder.close()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Return the buffer that lives in a folder, as it was at its last `flush`; its settings are those it had.

        Parameters
        ----------
        folder : str or Path
            Of a buffer with ``store="mmap"``.

        Raises
        ------
        ValueError
            If the folder holds no buffer of this kind, or a damaged one. Nothing has changed then.
        OSError
            If another process uses it, a file in it is missing, or it cannot be written to.
        """
        return cls(**settings_in(path_of("folder", folder), cls._kind), store="mmap", folder=folder)

    @classmethod
    def load(
        cls,
        path: str | Path,
        store: Store = "ram",
        *,
        capacity: int | None = None,
        folder: str | Path | None = None,
    ) -> Self:
        """Return a saved buffer: it draws what the buffer that was saved would have drawn.

        With another capacity it draws from the rows that it holds: all that were saved, or with less room the newest of
        each environment. Rows keep their ``index``, their priorities and all else. Those whose stacks reach back to a
        row left behind cannot be drawn.

        Parameters
        ----------
        path : str or Path
            File that `save` wrote, or folder of a save that `begin_save` began.
        store : {"ram", "lz4", "mmap"} or callable
            As for the class; it need not be of the kind that the frames came from.
        capacity : int, optional
            Rows of the buffer returned (default: those of the saved one, which `saved_settings` gives).
        folder : str or Path, optional
            With ``store="mmap"``: a new or an empty folder for the buffer to live in.

        Raises
        ------
        ValueError
            If the file or folder is not a saved buffer of this kind, or is damaged; if ``capacity`` is out of range.
        MemoryError
            If there is too little memory for the capacity.
        """
        path, changed = path_of("path", path), {}
        if folder is None:
            nested = isinstance(store, Mapping | list | tuple)
            makers(store, nesting(cls.saved_settings(path)["obs_shape"]) if nested else None)  # not the file's error
        else:
            require_mmap(store)
            require_none_in(path_of("folder", folder))
        if capacity is not None:
            changed = {"capacity": integer("capacity", capacity)}
            with archive.SavedReplay(path, cls._kind, cls.__name__) as saved:
                settings = check_settings(**saved.settings)
            check_settings(**settings | changed)  # here, since an error is not the file's
        with archive.SavedReplay(path, cls._kind, cls.__name__) as saved:
            buffer = cls(**saved.settings | changed, store=store, folder=folder)
            try:  # from here on `saved` takes errors for damage
                ring = buffer._ring
                buffer._load_state(saved.state(), saved.rows)
                assert_that(min(ring.count.max(), saved.rows) == saved.held, "its header gives another number of rows")
                saved.fill(buffer._frames, ring.oldest, ring.count, ring.rows)
                buffer.check()
            except BaseException:
                if buffer._folder is not None:
                    buffer._folder.abandon()
                raise
        if folder is not None:
            buffer.flush()
        return buffer

    @classmethod
    def saved_settings(cls, path: str | Path) -> dict[str, Any]:
        """Return the settings of a saved buffer without loading it; errors as for `load`."""
        with archive.SavedReplay(path_of("path", path), cls._kind, cls.__name__) as saved:
            return saved.settings

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._prefetcher.require_none("copy")
            helpers = ("_lock", "_prefetcher", "_save", "_in_save", "_drawer", "_appender", "_sequences", "_relabeller")
            return {name: value for name, value in vars(self).items() if name not in helpers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_helpers()

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a copy that shared memory with this buffer would overwrite its rows

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        with self._lock:
            other = type(self).__new__(type(self))
            memo[id(self)] = other
            other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
            return other

    # --- inside ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Set what a derived class adds to an empty buffer, before any file is touched."""

    def _join(self, folder: ReplayFolder) -> None:
        """Take up the buffer in the folder, or make this one the folder's."""
        try:
            if folder.is_new:
                folder.complete(self._state())
                return
            with folder.saved() as saved:
                self._load_state(saved.state(), self._ring.rows)
                self.check()
            env = np.flatnonzero((folder.reserved > self._ring.count) & (self._ring.count > 0))
            for store, field in zip(self._stores, self._layout.fields, strict=True):  # no frame of a lost row
                store.write(self._ring.slots_ahead(env), np.zeros((len(env), *field.shape), field.dtype))
            self._weigh(self._ring.cut(folder.reserved[env] - self._ring.rows, env))
        except BaseException:
            folder.abandon()
            raise

    def _folder_of(self, call: str) -> ReplayFolder:
        if self._folder is None:
            raise ValueError(f"{call} is for a buffer with a folder (store='mmap'), and this one has none; call save")
        return self._folder

    @property
    def _rows_a_step(self) -> int:
        """Most rows that one vector step adds to a ring."""
        return 1 if self._final_inside else 2

    def _set_helpers(self) -> None:
        """Make the parts that a copy does not share: lock, threads, kernels."""
        self._lock = threading.RLock()
        self._prefetcher = Prefetcher(self._tree.capacity)
        self._save, self._in_save = None, False
        zero = self.settings["stack_padding"] == "zero"
        self._sequences = SequenceDrawer(self._ring, self._tree, self._stores, self._layout, zero=zero)
        self._relabeller = Relabeller(self._ring, self._stores, self._layout, zero=zero)
        self._set_kernels()
        forks.watch(
            self,
            before=ReplayBuffer._before_fork,
            in_parent=ReplayBuffer._after_fork_in_parent,
            in_child=ReplayBuffer._after_fork_in_child,
        )

    def _before_fork(self) -> tuple[bool, bool]:
        """Take the lock, so that a child gets a whole buffer; return if it was had, and if a prefetched batch is."""
        whole, saving = False, True
        while saving and not whole:  # a save is slow, but ends, maybe right after the lock was waited for in vain
            saving = self._in_save
            whole = self._lock.acquire(timeout=FORK_PATIENCE_S)
            saving = saving or self._in_save
        return whole, whole and self._prefetcher.has_copied()

    def _after_fork_in_parent(self, noted: tuple[bool, bool] | None) -> None:
        if noted is not None and noted[0]:
            self._lock.release()

    def _after_fork_in_child(self, noted: tuple[bool, bool] | None) -> None:
        whole, copied = noted or (False, False)
        if whole:
            self._lock.release()
        else:
            self._lock = _Barred(_TORN)  # type: ignore[assignment]
        self._prefetcher.forget_thread(copied=copied)
        if self._save is not None:
            self._save.leave_to_parent()
            self._save = None
        if self._folder is not None:
            self._folder.close()
            self._lock = _Barred(_LEFT_TO_PARENT)  # type: ignore[assignment]

    def _set_kernels(self) -> None:
        """Make the kernels that draw and add in one call; the latter writes into the memory of stores that have one."""
        self._take_settings(self.settings)
        self._appender, stores = None, self._stores
        self._mapped = [store for store in stores if isinstance(store, MmapStore)]
        if all(type(store) in (RamStore, MmapStore) for store in stores):
            columns = [
                AppendedArray(store.bytes, store.frames[:0], field.is_obs or field.in_next, field.is_obs)
                for store, field in zip(stores, self._layout.fields, strict=True)
            ]
            self._appender = self._ring.appender(
                columns, self._tree, several=not self._single, final_inside=self._final_inside
            )

    def _prepare_files(self, rows: int | NDArray[np.int64]) -> None:
        """Prepare the files for rows that are about to be added, as many as for `reserve`; errors as of it."""
        most = rows if isinstance(rows, int) else int(rows.max())
        if self._folder is not None:
            self._folder.reserve(self._ring.count, rows, most)
        for store in self._mapped:
            store.will_overwrite(self._ring.count, self._ring.rows, most)

    @property
    def _stores(self) -> Sequence[Any]:
        """The store of each array of a row."""
        return (self._store,) if self._single else self._store.stores

    @property
    def _frames(self) -> FrameStore:
        """All that saves take for the frame of a row."""
        fields = self._layout.fields
        single: FrameStore = self._store
        if self._single:
            return single
        return Records(self._store, [each.shape for each in fields], [each.dtype for each in fields])

    def _take_settings(self, settings: dict[str, Any]) -> None:
        """Make the kernel that draws by these settings; if it cannot be made, nothing changes."""
        drawer = self._ring.drawer(self._tree, settings["gamma"], zero=settings["stack_padding"] == "zero")
        self.settings, self._drawer = settings, drawer

    def _wait_for_readers(self, steps: int = 1) -> None:
        """Wait until no reader has yet to read a frame that the next steps overwrite."""
        ahead = min(self._rows_a_step * steps, self._ring.rows)
        while any(reader.wait_for(self._ring.next_slots(ahead)) for reader in self._readers()):
            pass  # other threads may have added rows, or begun a save: ask all again

    def _readers(self) -> list[Reader]:
        return [self._prefetcher] if self._save is None else [self._save, self._prefetcher]

    def _gather_saved(self, slots: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Do as `Snapshot.gather`: put the frames in these slots into an array."""
        self._prefetcher.wait()  # a store need not support two threads at once
        self._frames.gather(slots[None, :, None], frames)

    def _release_save(self) -> None:
        """Do as `Snapshot.release`: let no row wait for the save any longer."""
        self._save = None

    def _extend(self, rows: Any, *columns: Any, finals: Any, env_id: Any) -> bool:
        """Add vector steps in one call; return False, and change nothing, if their arrays do not match exactly."""
        if self._appender is None:
            return False
        if self._single:
            rows, finals = rows[0], None if finals is None else finals[0]
        args = (rows, *columns, finals, env_id, self._new_weight)
        gained = self._appender.extend(*args)
        self._drawable += gained or 0
        return gained is not None

    def _append(self, steps: Iterator[StepRows]) -> None:
        """Add vector steps that were checked; of many, as many at a time as `PIECE` allows.

        All their frames go first: if the store cannot write, none of them was added.
        """
        while piece := list(islice(steps, 1)):
            row_bytes = max(1, sum(array.nbytes for array in piece[0].arrays))
            most = max(1, min(PIECE // row_bytes, self._ring.rows // self._rows_a_step))
            piece += islice(steps, most - 1)
            self._append_piece(piece)

    def _append_piece(self, steps: list[StepRows]) -> None:
        ahead = np.zeros(self._ring.num_envs, np.int64)  # rows of this piece before those at hand
        added: list[tuple[StepRows, NDArray[np.bool_] | None]] = []
        slots = []
        for rows in steps:
            added.append((rows, None))
            if not self._final_inside and rows.mark.any():
                added.append(rows.ends(self._layout.fields))
        for rows, _ in added:
            slots.append(self._ring.slots_ahead(rows.env, ahead[rows.env]))
            ahead[rows.env] += 1
        arrays = [rows.arrays for rows, _ in added]
        if len(added) > 1:
            arrays = [tuple(map(np.concatenate, zip(*arrays, strict=True)))]
        self._store.write(np.concatenate(slots), arrays[0][0] if self._single else arrays[0])
        for rows, unknown in added:
            self._weigh(self._ring.push(rows.env, rows.action, rows.reward, rows.mark, rows.first))
            if unknown is not None:
                self._ring.forbid_continuing(rows.env[unknown])

    def _weigh(self, changed: NDArray[np.int64]) -> None:
        """Give changed slots the weight of new rows if they may be drawn now, and weight 0 if not."""
        may_be_drawn = self._ring.drawable[changed] != 0
        self._tree.write(changed, np.where(may_be_drawn, self._new_weight, 0.0))
        self._drawable += 2 * int(may_be_drawn.sum()) - len(changed)

    def _sample(self, asked: dict[str, Any], out: Batch | None) -> Batch:
        with self._lock:
            if self._prefetcher.in_flight and out is not None:
                raise ValueError(
                    "out is given, but the batch that was prefetched has arrays of its own; call sample without out"
                )
            try:
                if self._prefetcher.in_flight:
                    return self._prefetcher.land(asked)
                batch, numbers = self._draw(**asked, out=out)
                self._gather(numbers, batch)
            except BaseException:
                self._undo_draw()
                raise
            return batch

    def _prefetch(self, asked: dict[str, Any], out: Batch | None) -> None:
        with self._lock:
            self._prefetcher.require_none("prefetch again")
            try:
                batch, numbers = self._draw(**asked, out=out)
                self._prefetcher.start(asked, batch, numbers, self._gather)
            except BaseException:
                self._undo_draw()
                raise

    def _sample_sequences(self, asked: Asked, **how: float) -> SequenceBatch:
        with self._lock:
            self._sequences.check(asked)
            self._prefetcher.wait()  # a store need not support two threads at once
            before = self._rng.bit_generator.state
            try:
                return self._sequences.draw(
                    asked,
                    self._rng,
                    self.settings["gamma"],
                    lambda ratios, out: self._put_importance(ratios, out, **how),
                )
            except BaseException:
                self._rng.bit_generator.state = before
                raise

    def _sample_hindsight(self, asked: dict[str, Any], hindsight: Hindsight) -> HindsightBatch:
        with self._lock:
            self._relabeller.check(hindsight)
            self._prefetcher.wait()  # a store need not support two threads at once
            before = self._rng.bit_generator.state
            try:
                batch, numbers = self._draw(**asked, out=None)
                return self._relabeller.relabel(
                    hindsight, batch, numbers, self._rng, self.settings["gamma"], lambda: self._gather(numbers, batch)
                )
            except BaseException:
                self._rng.bit_generator.state = before
                raise

    def _undo_draw(self) -> None:
        """Set the generator back to before a draw that failed, unless its batch can still be taken."""
        if not self._prefetcher.in_flight:
            self._rng.bit_generator.state = self._before

    def _draw(self, batch_size: int, out: Batch | None, **how: float) -> tuple[Batch, NDArray[np.int64]]:
        """Fill a batch except for its frames; return it with the numbers of these, ``[2, B, stack]``."""
        self._before = self._rng.bit_generator.state
        if not self._drawable:
            raise ValueError(f"no row can be drawn yet: {len(self)} rows held; add more before the first sample")
        if out is not None:
            self._pool.check(out, batch_size)
        batch = self._pool.lend(batch_size) if out is None else out
        numbers = np.empty((2, batch_size, self._ring.stack), np.int64)
        ratios = self._rng.random(batch_size)
        action = as_bytes(batch.action, batch_size)
        self._drawer.draw(ratios, action, batch.reward, batch.discount, batch.index, numbers)
        self._put_importance(ratios, batch.weight, **how)
        return batch, numbers

    def _gather(self, numbers: NDArray[np.int64], batch: Batch) -> None:
        """Fill in a batch's frames, and fields of one's own."""
        if self._single:
            self._store.gather(numbers, batch.obs, batch.next_obs)
        else:
            self._store.gather(numbers, *self._layout.of_batch(batch))

    def _put_importance(self, ratios: NDArray[np.float64], out: NDArray[np.float32]) -> None:
        """Fill in importance weights, given the ratio of each row's weight in the tree to the least of them."""
        out.fill(1.0)

    def _state(self) -> dict[str, Any]:
        arrays = {f"ring.{name}": array for name, array in self._ring.state().items()}
        return arrays | {"rng": self._rng.bit_generator.state}

    def _load_state(self, state: dict[str, Any], rows: int) -> None:
        """Restore what `_state` of a buffer returned whose rings had ``rows`` slots."""
        self._ring.load_state({k.removeprefix("ring."): v for k, v in state.items() if k.startswith("ring.")}, rows)
        drawable = self._ring.drawable != 0
        self._tree.set(np.flatnonzero(drawable), np.ones(drawable.sum()))
        self._drawable = int(drawable.sum())
        self._rng.bit_generator.state = state["rng"]
