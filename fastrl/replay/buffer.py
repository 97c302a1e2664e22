"""Replay buffers over unstacked frames: add vector steps, draw n-step transitions of stacked frames."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastrl.base import forks
from fastrl.base.checks import assert_that, integer, number
from fastrl.replay.arrays import as_bytes, from_list
from fastrl.replay.batch import Batch, BatchPool
from fastrl.replay.checks import Autoreset, Seed, StepRows, check_index, check_rows, check_settings, generator
from fastrl.replay.prefetch import Prefetcher
from fastrl.replay.ring import Ring
from fastrl.replay.saves import Save, archive
from fastrl.replay.saves.save import Snapshot
from fastrl.replay.sequences import Asked, SequenceBatch, SequenceDrawer
from fastrl.replay.stores.by_name import maker
from fastrl.replay.stores.ram import RamStore
from fastrl.replay.stores.store import MakeStore
from fastrl.replay.sum_tree import SumTree

FORK_PATIENCE_S = 10.0
"""Seconds that a fork waits for another thread's call of a buffer to end."""


class Reader(Protocol):
    """Reads frames in another thread while rows are added: a save, or a batch that was prefetched."""

    def wait_for(self, slots: NDArray[np.int64]) -> bool:
        """Wait while a frame in these slots is yet to be read; the buffer's lock is held.

        Returns True if the lock was released meanwhile. Other threads may have added rows then, so the caller must ask
        again, with the slots that come next now.
        """


class _Torn:
    """The lock of a buffer that a fork found in the middle of another thread's call: every call raises."""

    def __enter__(self) -> None:
        raise RuntimeError(
            "this process was forked while another thread was inside a call of this buffer, which may have been left "
            "half done here; fork while no thread is inside one, or load a saved buffer"
        )

    def __exit__(self, *_: object) -> None:
        """Nothing is entered."""

    def acquire(self, timeout: float) -> bool:
        return False


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
        Shape and dtype of one frame.
    action_shape, action_dtype
        Shape and dtype of one action.
    stack : int
        Frames in an observation.
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
    store : {"ram", "lz4"} or callable
        Where frames are kept: in memory as they come (`RamStore`), compressed in memory (`Lz4Store`), or in another
        `FrameStore`, which the callable makes (`MakeStore`). A batch's ``obs`` and ``next_obs`` are what the store
        makes; their values do not depend on it.

    Raises
    ------
    ValueError
        If a setting is out of range; the message names it.
    ImportError
        If ``store`` needs a package that is not installed.
    MemoryError
        If there is too little memory for the capacity.
    """

    _kind = "uniform"
    """What files call buffers of this class, and of classes derived from it."""
    _lock: threading.RLock  # calls of several threads take turns
    _save: Save | None  # in progress

    def __init__(
        self,
        *,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        obs_dtype: DTypeLike = np.uint8,
        action_shape: tuple[int, ...] = (),
        action_dtype: DTypeLike = np.int64,
        stack: int = 1,
        stack_padding: Literal["first", "zero"] = "first",
        n_step: int = 1,
        gamma: float = 0.99,
        autoreset: Autoreset = "next_step",
        seed: Seed = None,
        store: str | MakeStore = "ram",
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
        )
        rng = generator(seed)
        num_envs, stack, n_step = settings["num_envs"], settings["stack"], settings["n_step"]
        obs_shape, action_shape = settings["obs_shape"], settings["action_shape"]
        frame_dtype, act_dtype = np.dtype(settings["obs_dtype"]), np.dtype(settings["action_dtype"])
        rows = settings["capacity"] // num_envs
        self._final_inside = autoreset == "next_step"  # the final observation comes as a row of its own
        try:
            self._ring = Ring(num_envs, rows, stack, n_step, action_shape, act_dtype)
            self._tree = SumTree(num_envs * rows)
            self._store = maker(store)(num_envs * rows, obs_shape, frame_dtype)
        except MemoryError as error:
            raise MemoryError(
                f"capacity is {capacity}, too much for memory ({error.__cause__ or error}); give less"
            ) from error
        self._pool = BatchPool((stack, *obs_shape), frame_dtype, action_shape, act_dtype, self._store.empty)
        self._rng = rng
        self._before = self._rng.bit_generator.state  # as it was before the latest draw
        self._drawable, self._new_weight = 0, 1.0  # rows; the weight of one that becomes drawable
        self._set_helpers()

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
        return self._store.nbytes + self._ring.nbytes + self._tree.nbytes

    def add(
        self,
        obs: ArrayLike,
        action: ArrayLike,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        first: ArrayLike | None = None,
        final_obs: ArrayLike | None = None,
        env_id: ArrayLike | None = None,
    ) -> None:
        """Add one vector step: one row for each of n environments.

        Costs O(n (stack + n_step)) and n copies of a frame.

        Parameters
        ----------
        obs : [n, *obs_shape] obs_dtype
            Newest frame of the observation in which ``action`` was taken.
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
            the row after it must open a new game: a stack that continues needs every frame.
        env_id : [n] int, optional
            Environments of these rows, none twice (default: all, in order).

        Raises
        ------
        ValueError
            If an argument does not fit, or a truncated row comes without its final frame. Nothing has changed then;
            nor has it if the store cannot write.
        RuntimeError
            If a row would wait for ever for a save that was begun and is never written (see `begin_save`).
        """
        with self._lock:
            if self._prefetcher.in_flight or self._save is not None:
                self._wait_for_readers()
            if self._appender is not None:
                gained = self._appender.add(
                    obs, action, reward, terminated, truncated, first, final_obs, env_id, self._new_weight
                )
                if gained is None and list in map(type, (action, reward, terminated, truncated, first, env_id)):
                    gained = self._appender.add(
                        obs,
                        from_list(action),
                        from_list(reward),
                        from_list(terminated),
                        from_list(truncated),
                        from_list(first),
                        final_obs,
                        from_list(env_id),
                        self._new_weight,
                    )
                if gained is not None:
                    self._drawable += gained
                    return
            rows = check_rows(self.settings, obs, action, reward, terminated, truncated, first, final_obs, env_id)
            self._ring.check_first(rows.env, rows.first)
            slots = self._ring.slots_ahead(rows.env)
            if self._final_inside or not rows.mark.any():
                self._store.write(slots, rows.obs)
                self._append(rows)
                return
            finals, unknown = rows.finals()
            slots = np.concatenate((slots, self._ring.slots_ahead(finals.env, 1)))
            # All frames at once, and before anything else: if the store cannot write, no row was added.
            self._store.write(slots, np.concatenate((rows.obs, finals.obs)))
            self._append(rows)
            self._append(finals)
            self._ring.forbid_continuing(finals.env[unknown])

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

    def prefetch(self, batch_size: int) -> None:
        """Draw the batch that the next `sample` returns, and let a thread copy its frames in the background.

        Rows and weights are drawn at once, exactly as `sample` would: the same seed gives the same batches, prefetched
        or not. A row added later waits only where it would overwrite a frame that is still to be copied.

        Parameters
        ----------
        batch_size : int
            B, at least 1; `sample` must then be called with the same.

        Raises
        ------
        ValueError
            If no row can be drawn yet, or a batch that was prefetched has not been taken.
        """
        self._prefetch({"batch_size": integer("batch_size", batch_size)})

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
            a folder's, a device's or a pipe's.
        OSError
            If the file cannot be written; a file that was there before is left as it was.
        """
        with self._lock:
            self._prefetcher.require_none("save")
            self._in_save = True
            try:
                archive.write_file(Path(path), self._kind, self.settings, self._state(), self._store, self._ring.held)
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
            If a batch that was prefetched has not been taken, or another save of this buffer is in progress.
        OSError
            If the folder exists or cannot be made.
        """
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
            save = self._save = Save(snapshot, Path(folder), None if earlier is None else Path(earlier))
            return save

    @classmethod
    def load(cls, path: str | Path, store: str | MakeStore = "ram", *, capacity: int | None = None) -> Self:
        """Return a saved buffer: it draws what the buffer that was saved would have drawn.

        With another capacity it draws from the rows that it holds: all that were saved, or with less room the newest of
        each environment. Rows keep their ``index``, their priorities and all else. Those whose stacks reach back to a
        row left behind cannot be drawn.

        Parameters
        ----------
        path : str or Path
            File that `save` wrote, or folder of a save that `begin_save` began.
        store : {"ram", "lz4"} or callable
            As for the class; it need not be of the kind that the frames came from.
        capacity : int, optional
            Rows of the buffer returned (default: those of the saved one, which `saved_settings` gives).

        Raises
        ------
        ValueError
            If the file or folder is not a saved buffer of this kind, or is damaged; if ``capacity`` is out of range.
        MemoryError
            If there is too little memory for the capacity.
        """
        path, make, changed = Path(path), maker(store), {}
        if capacity is not None:
            changed = {"capacity": integer("capacity", capacity)}
            with archive.SavedReplay(path, cls._kind, cls.__name__) as saved:
                settings = check_settings(**saved.settings)
            check_settings(**settings | changed)  # here, since an error is not the file's
        with archive.SavedReplay(path, cls._kind, cls.__name__) as saved:
            buffer = cls(**saved.settings | changed, store=make)  # from here on `saved` takes errors for damage
            ring = buffer._ring
            buffer._load_state(saved.state(), saved.rows)
            assert_that(min(ring.count.max(), saved.rows) == saved.held, "its header gives another number of rows")
            saved.fill(buffer._store, ring.oldest, ring.count, ring.rows)
            buffer.check()
        return buffer

    @classmethod
    def saved_settings(cls, path: str | Path) -> dict[str, Any]:
        """Return the settings of a saved buffer without loading it; errors as for `load`."""
        with archive.SavedReplay(Path(path), cls._kind, cls.__name__) as saved:
            return saved.settings

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._prefetcher.require_none("copy")
            helpers = ("_lock", "_prefetcher", "_save", "_in_save", "_drawer", "_appender", "_sequences")
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

    def _set_helpers(self) -> None:
        """Make the parts that a copy does not share: lock, threads, kernels."""
        self._lock = threading.RLock()
        self._prefetcher = Prefetcher(self._tree.capacity)
        self._save, self._in_save = None, False
        self._sequences = SequenceDrawer(
            self._ring,
            self._tree,
            self._store,
            self.settings["obs_shape"],
            zero=self.settings["stack_padding"] == "zero",
        )
        self._set_kernels()
        forks.watch(
            self,
            before=ReplayBuffer._before_fork,
            in_parent=ReplayBuffer._after_fork_in_parent,
            in_child=ReplayBuffer._after_fork_in_child,
        )

    def _before_fork(self) -> tuple[bool, bool]:
        """Take the lock, so that a child gets a whole buffer; return if it was had, and if a prefetched batch is."""
        while not (whole := self._lock.acquire(timeout=FORK_PATIENCE_S)) and self._in_save:
            pass  # a save is slow, but ends
        return whole, whole and self._prefetcher.has_copied()

    def _after_fork_in_parent(self, noted: tuple[bool, bool] | None) -> None:
        if noted is not None and noted[0]:
            self._lock.release()

    def _after_fork_in_child(self, noted: tuple[bool, bool] | None) -> None:
        whole, copied = noted or (False, False)
        if whole:
            self._lock.release()
        else:
            self._lock = _Torn()  # type: ignore[assignment]
        self._prefetcher.forget_thread(copied=copied)
        if self._save is not None:
            self._save.leave_to_parent()
            self._save = None

    def _set_kernels(self) -> None:
        """Make the kernels that draw and add in one call; the latter writes into the memory of a `RamStore` alone."""
        self._take_settings(self.settings)
        self._appender = None
        if type(self._store) is RamStore:
            frames, no_rows = self._store.bytes, self._store.frames[:0]
            self._appender = self._ring.appender(frames, self._tree, no_rows, final_inside=self._final_inside)

    def _take_settings(self, settings: dict[str, Any]) -> None:
        """Make the kernel that draws by these settings; if it cannot be made, nothing changes."""
        drawer = self._ring.drawer(self._tree, settings["gamma"], zero=settings["stack_padding"] == "zero")
        self.settings, self._drawer = settings, drawer

    def _wait_for_readers(self) -> None:
        """Wait until no reader has yet to read a frame that the next rows overwrite."""
        ahead = 1 if self._final_inside else 2
        while any(reader.wait_for(self._ring.next_slots(ahead)) for reader in self._readers()):
            pass  # other threads may have added rows, or begun a save: ask all again

    def _readers(self) -> list[Reader]:
        return [self._prefetcher] if self._save is None else [self._save, self._prefetcher]

    def _gather_saved(self, slots: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Do as `Snapshot.gather`: put the frames in these slots into an array."""
        self._prefetcher.wait()  # a store need not support two threads at once
        self._store.gather(slots[None, :, None], frames)

    def _release_save(self) -> None:
        """Do as `Snapshot.release`: let no row wait for the save any longer."""
        self._save = None

    def _append(self, rows: StepRows) -> None:
        """Append one row to each ring in ``rows.env``, their frames written already; weigh what may be drawn now."""
        self._weigh(self._ring.push(rows.env, rows.action, rows.reward, rows.mark, rows.first))

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
                self._store.gather(numbers, batch.obs, batch.next_obs)
            except BaseException:
                self._undo_draw()
                raise
            return batch

    def _prefetch(self, asked: dict[str, Any]) -> None:
        with self._lock:
            self._prefetcher.require_none("prefetch again")
            try:
                batch, numbers = self._draw(**asked, out=None)
                self._prefetcher.start(asked, batch, numbers, self._store.gather)
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
