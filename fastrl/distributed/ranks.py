"""Learners that torchrun has started, a process each: what they agree on. Only this module imports torch.distributed.

All that is agreed on travels by gloo, between CPUs; gradients by NCCL where they lie on GPUs. Nothing here is encrypted
or checked, and objects are unpickled: see docs/distributed.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # or a later import, of torch.compile, keeps the connections: see `Ranks.close`
from torch import Tensor

from fastrl.base.errors import ConfigError, PeerError, RunError, Stopped, exit_status, in_words
from fastrl.base.launch import Launch, launched
from fastrl.base.ranges import flag_of
from fastrl.base.stop import Stop
from fastrl.config import DQNConfig
from fastrl.distributed.neighbours import Neighbours, Place
from fastrl.dqn.device.device import pick_device
from fastrl.dqn.optimizer import stability_term
from fastrl.dqn.peers import ALONE, Peers, Turn

Result = TypeVar("Result")

PATIENCE = timedelta(minutes=30)
"""Longest wait for another learner, which may compile, load a replay or finish a checkpoint meanwhile. One that is gone
is noticed at once, by its closed connection; this is for a machine that has lost its network."""
LOOK = timedelta(seconds=1)
"""So long a collective waits before it looks whether the other processes of its machine are still there. In about one
death of a hundred, one amid a message, gloo does not notice that the connection was closed (PyTorch 2.13)."""
JOIN = timedelta(minutes=5)
"""Longest wait for all to come together, for the first run of a process. For later ones it is `PATIENCE`: one of them
may have had work of its own in between."""
ASK_SECONDS = 0.05
"""Between two looks whether they have."""
MESSAGE_SECONDS = 2.0
"""Time for the message of a learner that failed to arrive."""
SIGN_SECONDS = 0.5
"""Between two signs of life of a learner that leads while the others wait."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Those that ask for a stop; the first that was asked of any is the one that all name."""
WORKS, DONE, LEFT = range(3)
"""What the leading learner says of its work."""


class Restarted(Peers):
    """A process of a job of torchrun, which may be started anew; the only one, unless it is of `Ranks`.

    Parameters
    ----------
    number : int
        Of the run in this process: a program may train several, one after another.
    """

    def __init__(self, number: int) -> None:
        self._agent, self._key = _agent_store(), f"fastrl/{number}/folder"

    def remembered(self) -> Path | None:
        """Return the folder of the run that this job has begun before torchrun started it anew."""
        return Path(os.fsdecode(self._agent.get(self._key))) if self._agent.check([self._key]) else None

    def remember(self, folder: Path) -> None:
        """Keep the folder where torchrun keeps it as long as the job lasts."""
        self._agent.set(self._key, os.path.abspath(folder))


class Ranks(Restarted):
    """The learners of one job of torchrun.

    Parameters
    ----------
    launch : Launch
        What torchrun says.
    device : torch.device
        Where they learn.
    number : int
        Of the run in this process: a program may train several, one after another.
    stop : Stop
        Asked by signals that this process gets; they end the wait for the others.

    Raises
    ------
    RunError
        If the others do not come.
    PeerError
        By every method that hears of others, if one of them is gone.
    """

    def __init__(self, launch: Launch, device: torch.device, number: int, stop: Stop) -> None:
        super().__init__(number)
        self.rank, self.count, self.local_count = launch.rank, launch.count, launch.local_count
        self._store: Any = _part_of(self._agent, f"fastrl/{number}")
        self._due = self._timed = False
        self._own: Stop | None = None  # asked by signals that this process gets
        self._pending: Any = None  # the message that is waited for, or the last one that failed
        self._neighbours = Neighbours(self.rank)
        cuda = device.type == "cuda"
        try:
            with self._heard():
                self._store = _part_of(self._store, self._meet(stop, PATIENCE if number else JOIN))
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if cuda else "gloo",
                    store=self._store,
                    rank=self.rank,
                    world_size=self.count,
                    timeout=PATIENCE,
                )
                places: list[Any] = [None] * self.count
                dist.all_gather_object(places, Place.mine())
            self._neighbours.watch(places)
        except BaseException:
            self.close()
            raise

    def _meet(self, stop: Stop, patience: timedelta) -> str:
        """Return a name that all learners of this start know and those of no other.

        Whatever starts anew needs keys of its own: gloo would connect to addresses of processes that are gone. What
        torchrun counts does not tell starts apart: each machine counts the failures of its own learners. So each
        learner leaves a word of its own, and the first one answers with the name, also to words of an earlier start,
        until all of this start have confirmed it.
        """
        mine = uuid.uuid4().hex
        if not self.leads:
            self._store.set(f"word {self.rank}", mine)
            self._come({0: f"answer {mine}"}, stop, patience)
            name = str(self._store.get(f"answer {mine}").decode())
            self._store.set(f"{name} confirmed {self.rank}", "")
            try:
                self._come({0: f"{name} begins"}, stop, patience)
            except RunError as error:
                raise PeerError("another learner did not come; learner 0 says which") from error
            return name
        answered = dict[int, bytes]()

        def answer() -> None:
            for rank in range(1, self.count):
                if self._store.check([f"word {rank}"]):
                    word = self._store.get(f"word {rank}")
                    if word != answered.get(rank):
                        self._store.set(f"answer {word.decode()}", mine)
                        answered[rank] = word

        self._come({rank: f"{mine} confirmed {rank}" for rank in range(1, self.count)}, stop, patience, answer)
        self._store.set(f"{mine} begins", "")
        return mine

    def _come(
        self, keys: Mapping[int, str], stop: Stop, patience: timedelta, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until other learners, by their numbers, have set these keys; RunError if they do not.

        ``meanwhile`` is called between two looks.
        """
        until = time.monotonic() + patience.total_seconds()
        while not self._store.check(list(keys.values())):
            meanwhile()
            if stop:
                raise KeyboardInterrupt(stop.signal)
            if time.monotonic() > until:
                missing = [str(rank) for rank, key in keys.items() if not self._store.check([key])]
                raise RunError(
                    f"learner{'s' * (len(missing) > 1)} {', '.join(missing)} did not come within "
                    f"{patience.total_seconds():g} seconds; see what torchrun says on all machines, and unless it "
                    "does so itself, start it anew"
                )
            time.sleep(ASK_SECONDS)

    def close(self) -> None:
        """Close all connections, which ends what others wait for, and the threads that keep them.

        A thread of gloo's that lived on into the end of the interpreter could not let go of a tensor then, and the
        process would abort ("terminate called without an active exception"). They live as long as anything knows the
        group. Functions of `torch.distributed.nn` do, whose module is imported after it was made: it is their default.
        Only a thread that still waits for a learner is left as it is: letting go of the group would wait for it.
        """
        if self._pending is not None and not self._pending.is_completed():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
        self._pending = None
        with contextlib.suppress(RuntimeError, AssertionError, ValueError):
            dist.destroy_process_group()
        self._neighbours.close()

    # --- what is divided ------------------------------------------------------------------------------

    @property
    def average(self) -> Callable[[Tensor], None]:
        """What makes flat gradients the mean over all learners, in place, equal in all of them to the bit."""
        return self._average

    def _average(self, gradients: Tensor) -> None:
        self._reduce(gradients)
        gradients.div_(self.count)

    def part(self, config: DQNConfig) -> DQNConfig:
        """Return settings with the batch, the capacity and the frames of this learner, and the whole batch's eps."""
        for name in ("batch_size", "capacity"):
            value = getattr(config, name)
            if value is not None and value % self.count:
                fits = [n for n in (value // self.count * self.count, -(-value // self.count) * self.count) if n]
                raise ConfigError(
                    f"{flag_of(name)} is {value}, which {self.count} learners cannot share evenly; give "
                    f"{' or '.join(map(str, fits))}"
                )
        return config.replace(
            batch_size=config.batch_size // self.count,
            capacity=None if config.capacity is None else config.capacity // self.count,
            total_frames=-(-config.total_frames // self.count),
            optimizer_eps=stability_term(config) if config.optimizer == "adam" else config.optimizer_eps,
        )

    # --- what is agreed on ----------------------------------------------------------------------------

    def agreed(self, stop: Stop) -> Stop:
        """Return a stop that holds for all learners at the same step."""
        self._own = stop
        return SharedStop(stop, self)

    def turn(self, mine: Turn, stop: Stop) -> Turn:
        """Add up what a vector step brought to all, by one message of some numbers."""
        steps, drawable, ready, saved, due = self._hear(
            stop, mine.steps, mine.drawable, mine.drawable > 0, mine.saved, self._due
        )
        self._due, self._timed = False, due > 0
        return Turn(steps, drawable if ready == self.count else 0, saved == self.count)

    def timed(self, due: bool) -> bool:
        """Whether to save now; asked once a turn."""
        timed, self._timed = self._timed, False
        self._due = due and self.leads and not timed
        return timed

    def leading(self, work: Callable[[], None], stop: Stop) -> None:
        """Let the first learner work; it tells the others that it lives, and hears of their stops, in `Stop.check`."""
        assert isinstance(stop, SharedStop)
        if self.leads:
            state = DONE
            try:
                with stop.leading():
                    work()
            except Stopped:
                state = LEFT
            self.sign(stop, state)
        else:
            while (state := self.sign(stop, WORKS)) == WORKS:
                pass
        if state == LEFT:
            raise Stopped

    def sign(self, stop: Stop, state: int) -> int:
        """Exchange the state of the first learner's work, and stops."""
        return self._hear(stop, state if self.leads else 0)[0]

    def _hear(self, stop: Stop, *numbers: int) -> list[int]:
        """Return sums over all learners; a stop asked of any of them holds from now on."""
        assert isinstance(stop, SharedStop)
        asked = [stop.asked == number for number in SIGNALS]
        *sums, term, interrupt, hang_up = self._sum(torch.tensor([*numbers, *asked], dtype=torch.int64)).tolist()
        for number, count in zip(SIGNALS, (term, interrupt, hang_up), strict=True):
            if count and not stop:
                stop.signal = number
        return [int(n) for n in sums]

    def _sum(self, numbers: Tensor) -> Tensor:
        self._reduce(numbers)
        return numbers

    def shared(self, make: Callable[[], Result]) -> Result:
        """Return what ``make`` returns in the first learner, to all."""
        found = [make() if self.leads else None]
        with self._heard():
            dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return found[0]  # type: ignore[return-value]

    def least(self, number: float) -> float:
        """Return the least of the learners' numbers, float64."""
        mine = torch.tensor([number], dtype=torch.float64)
        self._reduce(mine, dist.ReduceOp.MIN)
        return float(mine)

    def every(self, yes: bool) -> bool:
        """Whether it is so in every learner."""
        return int(self._sum(torch.tensor([int(yes)], dtype=torch.int64))) == self.count

    def wait(self) -> None:
        """Wait until all have come here."""
        self.every(True)

    def _reduce(self, numbers: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        """Reduce numbers over all learners, in place."""
        with self._heard():
            if numbers.is_cuda:  # NCCL has a watchdog
                dist.all_reduce(numbers, op=op)
            else:
                self._pending = dist.all_reduce(numbers, op=op, async_op=True)
                self._wait_for_pending()

    def _wait_for_pending(self) -> None:
        """Wait for a message by gloo, but not for processes of this machine that have ended."""
        gone: list[int] = []
        while not self._pending.is_completed():
            with contextlib.suppress(RuntimeError):  # it takes longer than that, or it has failed
                self._pending.wait(LOOK)
            if not self._pending.is_completed():
                if self._own is not None:
                    self._own.comes_after("the step of another learner, which is late")
                if gone:  # for a whole look: what they had sent, as all do before they leave in order, has arrived
                    raise RuntimeError(f"the process of learner {gone[0]} has ended")
                gone = self._neighbours.ended()
        self._pending.wait()  # raises what it has failed with
        self._pending = None

    # --- failures -------------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """Tell the others why this learner ends; `PeerError` if the first one says the same."""
        says, status = in_words(error), exit_status(error)
        with contextlib.suppress(RuntimeError):
            self._store.compare_set("error", "", f"{status} learner {self.rank} ended the run ({says})")
            self._store.set(f"error {self.rank}", says)
        if not self.leads and isinstance(error, ConfigError) and self._said("error 0") == says:
            raise PeerError(says, status) from error

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """Turn the error of a connection into one that says what became of the other side."""
        try:
            yield
        except RunError:
            raise
        except RuntimeError as error:
            raise self._gone(error) from error

    def _gone(self, error: RuntimeError) -> PeerError:
        """Return the error to raise where another learner does not answer, for one that came out of a collective.

        The frames of that one hold the connections, and would keep them, with their threads, as long as it is known.
        """
        traceback.clear_frames(error.__traceback__)
        if said := self._said("error"):
            status, _, says = said.partition(" ")
            return PeerError(says, int(status))
        # gloo begins with a place in its source, and ends with advice and a picture.
        words = re.sub(r"\[\S*/\S*\] ", "", in_words(error), count=1).partition(". This is typically")[0]
        return PeerError(
            f"another learner is gone without a message ({words}): it was killed, or its machine or the network failed"
        )

    def _said(self, key: str) -> str:
        """Return a message of another learner, if it comes soon; otherwise an empty text."""
        until = time.monotonic() + MESSAGE_SECONDS
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < until:
                if self._store.check([key]):
                    return str(self._store.get(key).decode())
                time.sleep(0.05)
        return ""


class SharedStop(Stop):
    """A stop of all learners: true once all know of it, at the same step.

    Parameters
    ----------
    own : Stop
        Asked by signals that this process gets.
    ranks : Ranks
        All learners.
    """

    def __init__(self, own: Stop, ranks: Ranks) -> None:
        super().__init__()
        self._own, self._ranks = own, ranks
        self._signed: float | None = None  # when the others last heard of this learner, which leads; None if not

    @property
    def asked(self) -> int | None:
        """The signal that asked this process."""
        return self._own.signal

    @contextlib.contextmanager
    def after(self, end: str) -> Iterator[None]:
        with self._own.after(end):
            yield

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for, of this learner or, while it leads, of another."""
        if self._signed is not None and time.monotonic() - self._signed > SIGN_SECONDS:
            self._ranks.sign(self, WORKS)
            self._signed = time.monotonic()
        if self or self._own:
            raise Stopped

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Let `check` tell the others that this learner lives."""
        self._signed = time.monotonic()
        try:
            yield
        finally:
            self._signed = None


_runs = 0  # that this process has begun


@contextlib.contextmanager
def joined(device: str, stop: Stop) -> Iterator[Peers]:
    """Come together with the other learners that torchrun has started; without torchrun there is this one.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        As of the setting: on GPUs each learner of a machine has one of its own.
    stop : Stop
        Asked by signals that this process gets.

    Raises
    ------
    ConfigError
        If there are fewer GPUs.
    KeyboardInterrupt
        With the number of a signal that came before the others did.
    RunError
        If the others do not come; `PeerError`, if one of them is gone.
    """
    global _runs
    launch = launched()
    if launch is None:
        yield ALONE
        return
    number, _runs = _runs, _runs + 1
    if launch.count == 1:
        yield Restarted(number)
        return
    where = pick_device(device)
    if where.type == "cuda":
        gpus = torch.cuda.device_count()
        if launch.local_count > gpus:
            raise ConfigError(
                f"torchrun's --nproc-per-node is {launch.local_count}, and this machine has {gpus} GPUs; give "
                f"--nproc-per-node {gpus}, or --device cpu"
            )
        torch.cuda.set_device(launch.local_rank)
    ranks = Ranks(launch, where, number, stop)
    try:
        yield ranks
    except PeerError:
        raise
    except BaseException as error:
        ranks.failed(error)
        raise
    finally:
        ranks.close()


def _part_of(store: Any, name: str) -> Any:
    """Return a store whose keys are those of this name."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _agent_store() -> Any:
    """Return a client of the store that torchrun keeps for as long as the job lasts.

    Where it is told to keep none, the first process does; then nothing is remembered over a restart.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and os.environ["RANK"] == "0"
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=ours, wait_for_workers=False, timeout=JOIN, multi_tenant=True
        )
    except RuntimeError as error:
        raise ConfigError(
            f"nothing answers at {host}:{port}, where torchrun's store should be ({in_words(error)}); give torchrun "
            "--master-addr, or --rdzv-endpoint, an address of the first machine that the others reach"
        ) from error
