"""What the engine asks before it starts Ray; needs no Ray."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest
from by_torchrun import set_launch

from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS
from fastrl.distributed import engine
from fastrl.distributed.collectors import LostError, Request


@contextmanager
def server(answer):
    """Listen on the loopback and send `answer` to everything that connects; None: say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept = []

        def serve():
            with suppress(OSError):  # once it is closed
                while True:
                    connection, _ = listening.accept()
                    kept.append(connection)
                    if answer is not None:
                        connection.recv(100)
                        connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()


def ask(address):
    with patch.object(engine, "CONNECT_SECONDS", 0.3):
        engine._ask_address(f"--ray-address is {address!r}", address)


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_a_port_that_answers_and_is_not_ray_is_refused_at_once(answer):
    with server(answer) as address:
        words = f"--ray-address is '{address}', and what answers there is not Ray; give"
        with pytest.raises(ConfigError, match=words):
            ask(address)


def test_a_port_that_speaks_http2_as_ray_does_is_taken():
    with server(bytes(3) + b"\x04" + bytes(5)) as address:
        ask(address)


def test_a_port_with_tls_is_left_to_ray(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with server(None) as address:
        ask(address)


def test_a_port_where_nothing_listens_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ConfigError, match=f"'127.0.0.1:{port}', and nothing answers there .*; start Ray on it"):
        ask(f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="nothing answers there"):
        ask("127.0.0.1:99999")
    with pytest.raises(ConfigError, match="give auto, or host:port"):
        ask("somewhere")


def test_a_ray_that_is_started_here_gets_a_token_of_its_own_and_a_clusters_is_the_users():
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    modules = {name: module for name, module in sys.modules.items() if name != "ray"}
    with patch.dict(os.environ, here, clear=True), patch.dict(sys.modules, modules, clear=True):
        engine._set_environment("auto")
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert not any(f"RAY_{name}" in os.environ for name in engine.OWN_RAY)  # a cluster is the user's
        first, *others = (f"RAY_{name}" for name in engine.OWN_RAY)
        os.environ[first] = "7"
        engine._set_environment(None)
        assert os.environ[first] == "7"  # which the user wants
        assert [os.environ[name] for name in others] == ["0"] * 3
        first = os.environ.pop("RAY_AUTH_TOKEN")
        engine._set_environment(None)
        assert len(first) == 64
        assert os.environ["RAY_AUTH_TOKEN"] != first
        os.environ["RAY_AUTH_TOKEN"] = "mine"
        engine._set_environment(None)
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"


def test_a_program_that_has_started_a_ray_of_its_own_joins_no_cluster_with_that_ones_token():
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    modules = {name: module for name, module in sys.modules.items() if name != "ray"}
    with patch.dict(os.environ, here, clear=True), patch.dict(sys.modules, modules, clear=True):
        engine._set_environment(None)
        sys.modules["ray"] = ModuleType("ray")
        engine._set_environment(None)  # another one of its own
        with pytest.raises(ConfigError, match=r"--ray-address is 'auto', and .*; join the cluster in a new process"):
            engine._set_environment("auto")


def test_a_token_that_others_can_read_is_refused(tmp_path):
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a1" * 32)
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with patch.dict(os.environ, here | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}, clear=True):
        token.chmod(0o644)
        with pytest.raises(ConfigError, match=f"--ray-address is 'auto', and others can read .* `chmod 600 {token}`"):
            engine._require_secret("--ray-address is 'auto'")
        token.chmod(0o600)
        engine._require_secret("--ray-address is 'auto'")
        token.chmod(0o644)
        os.environ["RAY_AUTH_TOKEN_PATH"] = "elsewhere"
        engine._require_secret("--ray-address is 'auto'")


# --- the process that waits -----------------------------------------------------------------------------


class FakeRay(ModuleType):
    """Ray's face as the engine uses it, without processes: calls are answered at once, or fail as a test says."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class ActorDiedError(RayError):
            actor_init_failed = False

        class RayTaskError(RayError):
            cause = None

        class RuntimeEnvSetupError(RayError):
            pass

    def __init__(self):
        super().__init__("ray")
        self.made, self.killed, self.slow = [], [], set()
        self.is_initialized, self.cluster_resources = lambda: True, lambda: {"CPU": 4.0}

    def remote(self, kind):
        ray = self

        class Options:
            def __init__(self, **options):
                self.options = options

            def remote(self, *args, **kwargs):
                ray.made.append(FakeActor(args, self.options))
                return ray.made[-1]

        return SimpleNamespace(options=Options)

    def wait(self, refs, *, timeout, num_returns=1):
        ready = [ref for ref in refs if ref[0] not in self.slow]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref):
        if isinstance(ref[0].fails, Exception):
            raise ref[0].fails
        return ref[1:]

    def kill(self, actor, no_restart=True):
        self.killed.append((actor, no_restart))


class FakeActor:
    def __init__(self, args, options):
        self.number, self.options, self.fails = args[2], options, None

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *args: (self, name, *args))


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def engine_of(collectors):
    """Return an engine whose collectors have begun to play."""
    started = engine.RayEngine(PRESETS["catch"].config.replace(collectors=collectors), 1, 200)
    for number in range(collectors):
        started.start(number)
    for number in range(collectors):
        started.open_games(number)
    played(started)
    return started


def played(started):
    """Ask all collectors to play; return the process that does so, the number and the life, for each."""
    refs = [started.collect(number, Request(4, 0.5, 3), None) for number in range(len(started._lives))]
    return [(ref[0], *ref[2:4]) for ref in refs]


def lose(started, number, error="RayError"):
    """Lose a collector's answer."""
    process = started._actors[number]
    process.fails = getattr(FakeRay.exceptions, error)("gone")
    with pytest.raises(LostError):
        started.get(number, (process, "collect"))
    process.fails = None  # Ray starts it anew


def test_a_spare_process_is_started_once_all_collectors_play_and_only_beside_several(ray):
    engine_of(3)
    assert [actor.number for actor in ray.made] == [0, 1, 2, engine.SPARE]
    assert [actor.options["num_cpus"] for actor in ray.made] == [1.0, 1.0, 1.0, 0]
    ray.made.clear()
    engine_of(1)
    assert [actor.number for actor in ray.made] == [0]


def test_a_spare_process_steps_in_for_one_that_is_lost_whose_new_process_waits_then(ray):
    started = engine_of(2)
    zero, one, spare = ray.made
    assert played(started) == [(zero, 0, 0), (one, 1, 0)]
    lose(started, 1)
    assert played(started) == [(zero, 0, 0), (spare, 1, 1)]
    lose(started, 0)
    assert played(started) == [(one, 0, 1), (spare, 1, 1)]
    lose(started, 0)
    assert played(started) == [(zero, 0, 2), (spare, 1, 1)]  # another life than its first: what that played is past
    assert len(ray.made) == 3
    assert not ray.killed


def test_a_hung_process_is_killed_and_the_spare_one_steps_in(ray):
    started = engine_of(2)
    zero, one, spare = ray.made
    started.restart(0)
    assert ray.killed == [(zero, False)]
    assert played(started) == [(spare, 0, 1), (one, 1, 0)]


@pytest.mark.parametrize("why", ["it is starting", "it is lost too"])
def test_a_spare_process_that_is_not_ready_does_not_step_in(ray, why):
    started = engine_of(2)
    zero, one, spare = ray.made
    if why == "it is starting":
        ray.slow.add(spare)
    else:
        spare.fails = ray.exceptions.RayError("gone")
    lose(started, 1)
    assert played(started) == [(zero, 0, 0), (one, 1, 0)]
    ray.slow.clear()
    spare.fails = None
    lose(started, 1)
    assert played(started) == [(zero, 0, 0), (spare, 1, 1)]


def test_a_spare_process_that_hangs_is_killed_and_its_new_one_steps_in(ray, monkeypatch):
    started = engine_of(2)
    zero, _, spare = ray.made
    ray.slow.add(spare)
    lose(started, 1)
    assert ray.killed == []  # it may be starting
    now = time.monotonic() + engine.START_SECONDS + 1
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: now))
    for _ in range(2):
        lose(started, 1)
        assert ray.killed == [(spare, False)]  # and once: the new one may be starting
    ray.slow.clear()
    lose(started, 1)
    assert played(started) == [(zero, 0, 0), (spare, 1, 1)]


@pytest.mark.parametrize(("count", "address", "cpus"), [(2, "auto", 0.666), (2, None, 1.0), (1, "auto", 1.0)])
def test_the_cores_of_a_cluster_are_for_the_collectors_of_all_learners(ray, monkeypatch, count, address, cpus):
    set_launch(monkeypatch, rank=0, count=count, local_rank=0, local_count=count)
    config = PRESETS["catch"].config.replace(collectors=3, ray_address=address)
    started = engine.RayEngine(config, 1, 200)
    started.start(0)
    assert ray.made[0].options["num_cpus"] == cpus
    if cpus < 1:
        assert started.notes[0].startswith("--collectors is 3 for each of 2 learners, and Ray has 4 cores: they share")


def test_of_a_process_that_is_gone_for_good_a_new_one_waits(ray):
    started = engine_of(2)
    zero, one, spare = ray.made
    lose(started, 1, "ActorDiedError")
    assert ray.killed == [(one, True)]
    assert played(started) == [(zero, 0, 0), (spare, 1, 1)]
    new = ray.made[3]
    lose(started, 0)
    assert played(started) == [(new, 0, 1), (spare, 1, 1)]


def test_all_processes_are_ended_the_spare_one_too(ray):
    started = engine_of(2)
    started.close()
    assert [actor for actor, _ in ray.killed] == ray.made
