"""What the engine asks before it starts Ray; needs no Ray."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from unittest.mock import patch

import pytest

from fastrl.base.errors import ConfigError
from fastrl.distributed import engine


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
        engine._set_environment(None)
        first = os.environ.pop("RAY_AUTH_TOKEN")
        engine._set_environment(None)
        assert len(first) == 64
        assert os.environ["RAY_AUTH_TOKEN"] != first
        os.environ["RAY_AUTH_TOKEN"] = "mine"
        engine._set_environment(None)
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"


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
