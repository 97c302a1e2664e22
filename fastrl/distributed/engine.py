"""Ray: starts collectors, here or on a cluster, and carries questions and answers. The only module that imports it.

Ray's services listen on every interface of a machine and unpickle what they are sent. A token keeps others out, but has
no place on an open network: see docs/distributed.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import platform
import re
import secrets
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastrl.base.errors import LONGEST, ConfigError, RunError, in_words
from fastrl.base.extras import need
from fastrl.base.launch import launched
from fastrl.base.machine import cpu_count
from fastrl.config import DQNConfig, to_record
from fastrl.distributed.actor import Actor, Request, facts, versions
from fastrl.distributed.collectors import START_SECONDS, Collectors, LostError
from fastrl.distributed.player import Plan, Player
from fastrl.dqn import collector
from fastrl.envs.names import is_custom
from fastrl.envs.step import frame_bytes

CONNECT_SECONDS = 5
"""Time for an address to answer."""
HTTP2_SETTINGS = b"\x04"
"""Type of the frame that opens a connection of HTTP/2, and of Ray's gRPC."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)
CLOSE_SECONDS = 5.0
"""Time for collectors to close their games, before they are ended."""
OWN_RAY = {
    "memory_monitor_refresh_ms": "0",  # the replay's plan has asked for memory already
    "prestart_worker_first_driver": "0",  # a process for each core, of which collectors need some
    "task_events_report_interval_ms": "0",  # of each call, for the dashboard
    "enable_metrics_collection": "0",
}
"""How a Ray that is started here differs from others: no work and no memory for what nobody asks it."""
SPARE = -1
"""Number of the process that waits to take the place of a collector."""
SPARE_SECONDS = 1.0
"""Time for that process to say that it is ready."""
TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Variables of the environment that say where Ray's token is."""


class _RayActors(ABC):
    """Processes of one class as Ray's actors, which Ray restarts where there is room.

    Parameters
    ----------
    kind : type
        The class.
    collectors : int
        How many there will be.
    address : str or None
        Where they run, as ``--ray-address`` says it.
    game : str
        What they play; the module of a custom environment goes along.
    chunk_bytes : int
        Shared memory that a chunk of each may take.

    Attributes
    ----------
    notes : list of str
        What the user should know about the place where they run.

    Raises
    ------
    ConfigError
        If nothing answers at the address, the cluster refuses, or Ray cannot be started.
    ImportError
        If Ray is not installed; the message names the extra.
    """

    def __init__(self, kind: type, collectors: int, address: str | None, game: str, chunk_bytes: int = 0) -> None:
        _set_environment(address)
        self._ray = need("ray", "distributed")
        self._actors: dict[int, Any] = {}
        self._was_there = bool(self._ray.is_initialized())  # by the program that this process is
        if not self._was_there:
            with _our_signals():
                _connect(self._ray, collectors, address, game, chunk_bytes)
        self.notes, cores = [], float(self._ray.cluster_resources().get("CPU", 0.0))
        launch, share = launched(), 1.0
        learners = launch.count if launch and address is not None else 1  # with their collectors on one cluster
        if collectors * learners > cores:
            share = math.floor(cores / (collectors * learners) * 1_000) / 1_000
            each = f" for each of {learners} learners" if learners > 1 else ""
            self.notes.append(
                f"--collectors is {collectors}{each}, and Ray has {cores:g} cores: they share them; more cores play "
                "more games, more collectors do not"
            )
        options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        self._class, self._idle_class = (self._ray.remote(kind).options(num_cpus=n, **options) for n in (share, 0))

    @abstractmethod
    def start(self, number: int, *, again: bool = False) -> None:
        """Start a process; `again` if it takes the place of one that is gone for good."""

    def put(self, weights: Mapping[str, NDArray[Any]]) -> Any:
        """Store weights for all collectors."""
        return self._ray.put(dict(weights))

    def wait(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """Return the refs whose answers are there, or wait for one."""
        if not refs:
            time.sleep(seconds)
            return []
        ready: list[Any] = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)[0]
        return ready or list(self._ray.wait(list(refs), num_returns=1, timeout=seconds)[0])

    def get(self, number: int, ref: Any) -> Any:
        """Return an answer; see `Engine`."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            raise _of_collector(number, error.cause if error.cause is not None else error) from None
        except errors.ActorDiedError as error:  # for good: Ray restarts it no more
            if error.actor_init_failed:
                raise ConfigError(
                    f"collector {number} cannot start on its node ({_import_error(error)}); install fastrl with its "
                    "extras 'train' and 'distributed' on every node, in the learner's version"
                ) from error
            with contextlib.suppress(errors.RayError, ValueError):
                self._ray.kill(self._actors[number])
            self.start(number, again=True)
            raise LostError(type(error).__name__) from error
        except errors.RuntimeEnvSetupError as error:
            raise ConfigError(f"the module of the environment cannot be sent to a node: {in_words(error)}") from error
        except errors.RayError as error:
            raise LostError(type(error).__name__) from error

    def restart(self, number: int) -> None:
        """End a collector's process, however it hangs; Ray starts a new one."""
        self._ray.kill(self._actors[number], no_restart=False)

    def close(self) -> None:
        """End all processes, and Ray if it was started here."""
        with contextlib.suppress(Exception):  # Ray may be gone, and so are they
            for actor in self._actors.values():
                self._ray.kill(actor)
        self._actors.clear()
        if not self._was_there:
            self._ray.shutdown()  # of a Ray that was running already, only this process leaves


class RayEngine(_RayActors):
    """Collectors on Ray: a `fastrl.distributed.collectors.Engine`.

    Where there are several, one more process has imported all that a collector needs, and waits. It takes the place of
    the first one that is lost, whose own new process waits then.

    Parameters
    ----------
    config : DQNConfig
        All settings; `ray_address` says where they run.
    seed : int
        Of the collectors.
    frame_bytes : int
        Bytes of a plain frame, to know how much shared memory chunks need.

    Raises
    ------
    ConfigError, ImportError
        As of `_RayActors`.
    """

    def __init__(self, config: DQNConfig, seed: int, frame_bytes: int) -> None:
        chunk_bytes = config.chunk_steps * config.num_envs * frame_bytes
        super().__init__(RayActor, config.collectors, config.ray_address, config.game, chunk_bytes)
        self._seed, self._record = seed, to_record(config)
        self._spare: Any = None
        self._spare_since = 0.0  # when its process began, as far as is known
        self._wants_spare = config.collectors > 1
        self._lives = dict.fromkeys(range(config.collectors), 0)  # how often another process has stepped in

    def start(self, number: int, *, again: bool = False) -> None:
        """Start a collector; see `Engine`."""
        self._actors[number] = self._class.remote(self._record, self._seed, number, versions(), again=again)

    def get(self, number: int, ref: Any) -> Any:
        """Return an answer; see `Engine`."""
        try:
            return super().get(number, ref)
        except LostError:
            self._step_in(number)
            raise

    def restart(self, number: int) -> None:
        """End a collector's process, however it hangs; Ray starts a new one."""
        super().restart(number)
        self._step_in(number)

    def _step_in(self, number: int) -> None:
        """Let the process that waits take the place of one that was lost, if it is ready."""
        if self._spare is None:
            return
        ref = self._spare.ready.remote()
        try:
            if not self._ray.wait([ref], timeout=SPARE_SECONDS)[0]:
                if time.monotonic() - self._spare_since > START_SECONDS:  # it hangs
                    self._ray.kill(self._spare, no_restart=False)
                    self._spare_since = time.monotonic()
                return  # it is still starting
            self._ray.get(ref)
        except Exception:  # it is lost itself
            self._spare_since = time.monotonic()
            return
        self._actors[number], self._spare = self._spare, self._actors[number]
        self._spare_since = time.monotonic()
        self._lives[number] += 1

    def open_games(self, number: int) -> Any:
        """Ask for `Actor.open_games`."""
        return self._actors[number].open_games.remote()

    def collect(self, number: int, request: Request, weights: Any) -> Any:
        """Ask for `RayActor.collect_as`."""
        if self._wants_spare and self._spare is None:  # now that all others have started
            self._spare = self._idle_class.remote(self._record, self._seed, SPARE, versions(), again=True)
            self._spare_since = time.monotonic()
        return self._actors[number].collect_as.remote(number, self._lives[number], tuple(request), weights)

    def close(self) -> None:
        """Let the collectors close their games, then end them, and Ray if it was started here."""
        if self._spare is not None:
            self._actors[SPARE] = self._spare
        with contextlib.suppress(Exception):  # Ray may be gone, and so are they
            refs = [actor.close.remote() for actor in self._actors.values()]
            if refs:
                self._ray.wait(refs, num_returns=len(refs), timeout=CLOSE_SECONDS)
        super().close()


class RayPlayers(_RayActors):
    """Players on Ray: `fastrl.distributed.evaluation.Players`."""

    def __init__(self, collectors: int, address: str | None, game: str) -> None:
        super().__init__(RayPlayer, collectors, address, game)

    def start(self, number: int, *, again: bool = False) -> None:
        """Start a player; it begins nothing by itself, so `again` changes nothing."""
        self._actors[number] = self._class.remote(number, versions())

    def ready(self, number: int) -> Any:
        """Ask for `Player.ready`."""
        return self._actors[number].ready.remote()

    def play(self, number: int, plan: Plan, weights: Any, share: range) -> Any:
        """Ask for `Player.play`."""
        return self._actors[number].play.remote(plan, weights, share.start, len(share))

    def go_on(self, number: int) -> Any:
        """Ask for `Player.go_on`."""
        return self._actors[number].go_on.remote()


class RayPlayer(Player):
    """A `Player` in a process of Ray's."""

    def __init__(self, number: int, wanted: dict[str, str]) -> None:
        import torch

        torch.set_num_threads(1)  # a player is one core
        super().__init__(number, wanted)


class RayActor(Actor):
    """An `Actor` in a process of Ray's."""

    def __init__(self, record: dict[str, Any], seed: int, number: int, wanted: dict[str, str], *, again: bool) -> None:
        import torch

        torch.set_num_threads(1)  # a collector is one core
        context = need("ray", "distributed").get_runtime_context()
        again = again or context.was_current_actor_reconstructed
        if again and not is_custom(record["game"]):  # it waits first, while nothing else takes time
            import_module("fastrl.envs.atari")
        super().__init__(record, seed, number, wanted, again=again)

    def ready(self) -> bool:
        """Return True: this process has imported what it needs."""
        return True

    def collect_as(self, number: int, life: int, request: Any, weights: Any) -> Any:
        """Play in the place of a collector, by a request that came as a plain tuple."""
        self.become(number, life)
        return self.collect(Request(*request), weights)


def build_collectors(config: DQNConfig, seed: int, check: Callable[[], None]) -> Collectors:
    """Connect to the place where the collectors that the settings ask for will run.

    Parameters
    ----------
    config : DQNConfig
        All settings.
    seed : int
        Of the collectors.
    check : callable
        As of `Collectors`.

    Raises
    ------
    ConfigError
        If a setting does not fit the game, or for the reasons of `RayEngine`.
    ImportError
        If Ray is not installed; the message names the extra.
    """
    envs = collector.build_envs(
        config.replace(collectors=0, num_envs=1, env_groups=1, env_threads=1, dephase_steps=0), seed
    )
    try:
        made: Any = getattr(envs, "is_vector", False) and envs.num_envs
        if made and made != config.num_envs:
            raise ConfigError(f"--num-envs is {config.num_envs}, and {config.game} makes {made} at a time; give {made}")
        if is_custom(config.game):
            envs.reset()  # which says whether there are action masks
        engine = RayEngine(config, seed, frame_bytes(envs))
    except BaseException:
        envs.close()
        raise
    return Collectors(config, engine, envs, facts(envs), check=check)


def _of_collector(number: int, cause: BaseException) -> Exception:
    """Return the error to raise here for one that a collector raised."""
    if isinstance(cause, ConfigError):
        return ConfigError(str(cause))
    if isinstance(cause, RunError):
        return RunError(str(cause))
    return RunError(f"collector {number} failed ({in_words(cause)}); its log is in Ray's folder, /tmp/ray on its node")


def _import_error(error: BaseException) -> str:
    """Return the line of a failed start that says what went wrong: the last one that names an error."""
    lines = [line.strip() for line in str(error).splitlines() if re.match(r"\s*[\w.]*(Error|Exception): ", line)]
    return lines[-1][:LONGEST] if lines else in_words(error)


# --- connecting ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Put back the handlers of signals that Ray replaces; outside the main thread it replaces none."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


_groups = False
"""Whether processes that are forked now leave this one's process group."""


@contextlib.contextmanager
def _own_group() -> Iterator[None]:
    """Start Ray's processes in groups of their own: a signal to this one's group asks the learner alone to stop.

    torchrun, `timeout` and a closed terminal signal a whole group. Ray would end at once, and with it, without a word,
    the learner that still asks it something, instead of saving. Where the kernel ends a process with its parent, as on
    Linux, nothing is left behind all the same; elsewhere Ray ends them by their group, which they keep.
    """
    global _groups
    _groups = sys.platform == "linux"
    try:
        yield
    finally:
        _groups = False


def _leave_group() -> None:
    if _groups:
        os.setpgid(0, 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_group)  # which Python calls where `preexec_fn` is given, as Ray does


_own_token = ""


def _set_environment(address: str | None) -> None:
    """Ask Ray for a token, silence, no reports, and our own for `OWN_RAY`; it reads the environment when imported."""
    global _own_token
    if "ray" in sys.modules:  # by this program, with what it wants; or by an earlier run, with these
        if address is not None and _own_token and os.environ.get("RAY_AUTH_TOKEN") == _own_token:
            raise ConfigError(
                f"--ray-address is {address!r}, and this program has started a Ray of its own before, whose token it "
                "keeps; join the cluster in a new process (a notebook: restart its kernel)"
            )
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # lines about dead workers, which `log_to_driver` leaves
    if address is None:
        if not any(name in os.environ for name in TOKEN):
            _own_token = secrets.token_hex(32)  # of this process and its children, in no file
            os.environ["RAY_AUTH_TOKEN"] = _own_token
        for name, value in OWN_RAY.items():
            os.environ.setdefault(f"RAY_{name}", value)


def _connect(ray: Any, collectors: int, address: str | None, game: str, chunk_bytes: int) -> None:
    """Start Ray on this machine, or join the one at the address."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if is_custom(game) and (module := _module(game)) is not None:
        quiet["runtime_env"] = {"py_modules": [str(module)]}
    if address is not None:
        _join(ray, address, quiet)
        return
    store = min((256 << 20) + 3 * collectors * chunk_bytes, 4 << 30)
    try:
        with _own_group():
            ray.init(address="local", num_cpus=cpu_count(), include_dashboard=False, object_store_memory=store, **quiet)
    except Exception as error:
        raise ConfigError(
            f"--collectors is {collectors}, and Ray cannot be started on this machine ({in_words(error)}); give "
            "--collectors 0, or --ray-address of a cluster"
        ) from error


def _join(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    """Join a cluster that runs; its token is the user's."""
    said = f"--ray-address is {address!r}"
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    if address != "auto":
        _ask_address(said, address)
    _require_secret(said)
    try:
        ray.init(address=address, **quiet)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"{said}, and the cluster takes no process without its token; copy the token that `ray get-auth-token` "
            "shows on the head into ~/.ray/auth_token, readable by you alone, or set RAY_AUTH_MODE=disabled for a "
            "cluster without one"
        ) from error
    except ConnectionError as error:
        remedy = "start one with `ray start --head`, or give host:port" if address == "auto" else "see its logs there"
        raise ConfigError(f"{said}, and no Ray that runs is found ({in_words(error)}); {remedy}") from error
    except Exception as error:
        if other := re.search(r"started with:\s+Ray: (\S+)\s+Python: (\S+)", str(error)):
            raise ConfigError(
                f"{said}, and the cluster runs Ray {other[1]} on Python {other[2]}, this process Ray {ray.__version__} "
                f"on Python {platform.python_version()}; install the same versions on every node"
            ) from error
        raise ConfigError(
            f"{said}, and the cluster cannot be joined ({in_words(error)}); this machine must be a node of it (`ray "
            "start --address=HOST:PORT`), with the same versions of Ray and Python"
        ) from error


def _require_secret(said: str) -> None:
    """Raise ConfigError if others of this machine can read the file of the token; Ray itself makes it so."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or any(name in os.environ for name in TOKEN):
        return
    path = Path("~/.ray/auth_token").expanduser()
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"{said}, and others can read its token in {path}, with which they can run any code here; give "
                f"`chmod 600 {path}`"
            )


def _ask_address(said: str, address: str) -> None:
    """Raise ConfigError unless what listens at ``host:port`` talks like Ray; `ray.init` itself would wait for minutes.

    Ray's head speaks gRPC, and thus HTTP/2, where both sides open with a SETTINGS frame (RFC 9113, section 3.4).
    """
    parts = re.fullmatch(r"\[?([^\[\]/]+?)\]?:(\d+)", address)
    if parts is None:
        raise ConfigError(f"{said}; give auto, or host:port of the cluster's head, such as 10.0.0.2:6379")
    try:
        connection = socket.create_connection((parts[1], int(parts[2])), timeout=CONNECT_SECONDS)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{said}, and nothing answers there ({in_words(error)}); start Ray on it with `ray start --head`, or give "
            "the address that this prints"
        ) from error
    with connection:
        if os.environ.get("RAY_USE_TLS", "0") == "1":  # then nothing is said in plain text
            return
        header = b""
        with contextlib.suppress(OSError):
            connection.sendall(HTTP2_PREFACE)
            header = connection.recv(9)  # 3 bytes of length, the type, flags, the stream
    if header[3:4] != HTTP2_SETTINGS:
        raise ConfigError(
            f"{said}, and what answers there is not Ray; give the port that `ray start --head` prints (6379 unless it "
            "was given another)"
        )


def _module(game: str) -> Path | None:
    """Return the file or folder that nodes need to import a custom environment; None where it is installed.

    It goes along with the collectors: a module of one file as that file, a module inside a package as the package.
    """
    top = game.partition(":")[0].partition(".")[0]
    main = getattr(sys.modules["__main__"], "__file__", None)
    if main is not None and Path(main).stem == top:
        return Path(main).resolve()
    found = importlib.util.find_spec(top)
    origin = None if found is None else found.origin
    if origin is None or "site-packages" in origin or "dist-packages" in origin or found is None:
        return None
    path = Path(origin).resolve()
    return path.parent if found.submodule_search_locations else path
