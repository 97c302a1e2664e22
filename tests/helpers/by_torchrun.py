"""What torchrun says of a process in its environment."""

from __future__ import annotations


def set_launch(monkeypatch, *, rank, count, local_rank, local_count):
    """Let this process be number `rank` of `count`, number `local_rank` of `local_count` on its machine."""
    numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_count}
    for name, value in (numbers | {"TORCHELASTIC_RUN_ID": "x"}).items():
        monkeypatch.setenv(name, str(value))
