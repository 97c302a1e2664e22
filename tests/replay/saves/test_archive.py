"""Saving and loading: the same draws afterwards, and no damaged file gets in."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile

import numpy as np
import pytest
from make import NO, altered, filled, header_of

from fastrl.replay import Batch, PrioritizedReplayBuffer, ReplayBuffer

pytestmark = pytest.mark.usefixtures("stores")


@pytest.mark.parametrize("steps", [0, 3, 12, 57])
def test_save_and_load_go_on_with_the_same_batches(tmp_path, kernels, steps):
    buffer = filled(steps, n_step=2, stack_padding="zero")
    if buffer.drawable:
        buffer.update_priorities(buffer.sample(5).index, np.arange(5.0))
    buffer.save(tmp_path / "replay")
    again = PrioritizedReplayBuffer.load(tmp_path / "replay")
    assert [path.name for path in tmp_path.iterdir()] == ["replay"]
    assert (len(again), again.drawable, again.max_priority) == (len(buffer), buffer.drawable, buffer.max_priority)
    for t in range(60, 90):
        for b in (buffer, again):
            b.add(np.full((2, 3), t, np.uint8), np.array([t, t]), np.ones(2), np.array([t % 7 == 0, False]), NO)
        if buffer.drawable:
            first, second = buffer.sample(6), again.sample(6)
            for name in Batch.__slots__:
                assert np.array_equal(getattr(first, name), getattr(second, name)), name
            for b in (buffer, again):
                b.update_priorities(first.index, first.reward)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "encrypted", "no replay", "other class"])
def test_a_damaged_or_foreign_file_is_refused(tmp_path, harm):
    path = tmp_path / "replay"
    filled(obs_shape=(50,)).save(path)
    data = bytearray(path.read_bytes())
    if harm == "truncated":
        data = data[: len(data) // 2]
    elif harm == "flipped":
        data[data.index(bytes([7] * 50)) + 20] ^= 1
    elif harm == "encrypted":  # so it seems
        data[data.rindex(b"PK\x01\x02") + 8] ^= 1
    elif harm == "no replay":
        data = b"something else"
    path.write_bytes(data)
    kind = ReplayBuffer if harm == "other class" else PrioritizedReplayBuffer
    with pytest.raises(ValueError, match=str(path)):
        kind.load(path)


def test_an_error_that_is_no_damage_comes_out_as_it_is(tmp_path, monkeypatch):
    filled().save(tmp_path / "replay")

    def none_left(*_):
        raise MemoryError("none left")

    monkeypatch.setattr(json, "loads", none_left)
    with pytest.raises(MemoryError, match="none left"):
        PrioritizedReplayBuffer.load(tmp_path / "replay")


def test_a_failed_save_leaves_the_old_file_alone(tmp_path, monkeypatch):
    buffer = filled()
    buffer.save(tmp_path / "replay")
    before = (tmp_path / "replay").read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(buffer._store, "gather", full)
    with pytest.raises(OSError, match="disk full"):
        buffer.save(tmp_path / "replay")
    assert [path.name for path in tmp_path.iterdir()] == ["replay"]
    assert (tmp_path / "replay").read_bytes() == before


# --- the words of the header --------------------------------------------------------------------------


class Mine(PrioritizedReplayBuffer):
    pass


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_the_header_names_the_kind_by_a_word_that_outlives_the_names_of_classes(tmp_path, kind):
    settings = {"capacity": 40, "num_envs": 2, "obs_shape": (3,)}
    (ReplayBuffer if kind == "uniform" else PrioritizedReplayBuffer)(**settings).save(tmp_path / "replay")
    header = header_of(tmp_path / "replay")
    assert (header["format"], header["kind"]) == (2, kind)


def test_a_class_of_ones_own_saves_and_loads_as_the_kind_that_it_derives_from(tmp_path):
    filled().save(tmp_path / "replay")
    Mine.load(tmp_path / "replay").save(tmp_path / "mine")
    assert header_of(tmp_path / "mine")["kind"] == "prioritized"
    assert type(PrioritizedReplayBuffer.load(tmp_path / "mine")) is PrioritizedReplayBuffer


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
@pytest.mark.parametrize("folder", [False, True])
def test_a_file_of_format_1_whose_kind_is_the_name_of_a_class_loads(tmp_path, kind, folder):
    path, buffer = tmp_path / "replay", kind(capacity=40, num_envs=2, obs_shape=(3,), seed=0)
    for t in range(30):
        buffer.add(np.full((2, 3), t, np.uint8), np.array([t, -t]), np.ones(2), NO, NO)
    buffer.begin_save(path).write() if folder else buffer.save(path)

    def as_in_format_1(header, arrays):
        header.update(format=1, kind=kind.__name__)

    altered(path / "index" if folder else path, as_in_format_1)
    assert kind.saved_settings(path) == json.loads(json.dumps(buffer.settings))
    drawn, expected = kind.load(path).sample(8), buffer.sample(8)
    for name in Batch.__slots__:
        assert np.array_equal(getattr(drawn, name), getattr(expected, name)), name


def test_another_kind_or_format_is_named_with_what_was_expected(tmp_path):
    path = tmp_path / "replay"
    filled().save(path)
    expected = "expected kind 'uniform' in format 1, 2 or 3: load it with the class and version that saved it"
    with pytest.raises(ValueError, match=f"{path} holds a replay of kind 'prioritized' in format 2; {expected}"):
        ReplayBuffer.load(path)
    altered(path, lambda header, arrays: header.update(format=1, kind="PrioritizedReplayBuffer"))
    with pytest.raises(ValueError, match="kind 'prioritized' in format 1; expected kind 'uniform'"):
        ReplayBuffer.load(path)
    altered(path, lambda header, arrays: header.update(format=2))  # format 2 has no such kind
    with pytest.raises(ValueError, match="kind 'PrioritizedReplayBuffer' in format 2; expected kind 'prioritized'"):
        PrioritizedReplayBuffer.load(path)


# --- files that contradict themselves -----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda h, a: a["ring.count"].__isub__(100),
        lambda h, a: a["ring.count"].__iadd__(1),
        lambda h, a: a["ring.drawable"].fill(1),
        lambda h, a: a["ring.pending"].__iadd__(1),
        lambda h, a: a["ring.ended"].fill(1),
        lambda h, a: a["ring.mark"].fill(9),
        lambda h, a: a.update({"ring.count": a["ring.count"].astype(np.int32)}),
        lambda h, a: a.update({"ring.first": a["ring.first"][0]}),
        lambda h, a: a.update({"ring.action": np.array([None])}),
        lambda h, a: a.update({"weights": a["weights"][0]}),
        lambda h, a: a["weights"].fill(np.nan),
        lambda h, a: a.pop("weights"),
        lambda h, a: h["state"].update(max_priority=float("nan")),
        lambda h, a: h["state"].update(max_priority=-5),
        lambda h, a: (h["state"].update(max_priority=1e300), h["settings"].update(alpha=2.0)),  # overflows
        lambda h, a: h["state"]["rng"]["state"].update(state=-1),
        lambda h, a: h.update(held=6),
        lambda h, a: h.update(held=13),  # more than there are
        lambda h, a: h.update(settings=[1, 2]),
        lambda h, a: h["settings"].update(colour="red"),
        lambda h, a: h["settings"].update(n_step=2),
        lambda h, a: h.update(format=99),
    ],
    ids=lambda change: None,
)
def test_a_file_that_contradicts_itself_is_refused_by_name(tmp_path, change):
    path = tmp_path / "replay"
    filled().save(path)
    altered(path, lambda h, a: None)
    PrioritizedReplayBuffer.load(path)  # unchanged, it loads
    altered(path, change)
    with pytest.raises(ValueError, match=str(path)):
        PrioritizedReplayBuffer.load(path)


@pytest.mark.parametrize("where", ["array", "zip"])
def test_what_claims_to_be_larger_than_its_file_is_refused_before_memory_is_taken(tmp_path, where):
    path = tmp_path / "replay"
    filled().save(path)
    if where == "array":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2, 2**38)})
        members["ring.reward.npy"] = header.getvalue() + members["ring.reward.npy"][-96:]
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        altered(path, lambda h, a: None)
        data = bytearray(path.read_bytes())
        begin = data.index(b"PK\x01\x02")  # of the list of members
        data[begin + 24 : begin + 28] = (2**31).to_bytes(4, "little")  # the first one's size
        path.write_bytes(data)
    message = r"ring.reward.npy is 96 bytes, not float32 \[2, 274877906944\]"
    message = message if where == "array" else "header.json cannot be so long"
    with pytest.raises(ValueError, match=message):
        PrioritizedReplayBuffer.load(path)


def test_a_save_follows_links_keeps_permissions_and_replaces_regular_files_alone(tmp_path):
    buffer = filled(12)
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    real.touch()
    real.chmod(0o640)
    link.symlink_to(real)
    buffer.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert len(PrioritizedReplayBuffer.load(link)) == len(buffer)
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(ValueError, match="which is no regular file; give the name of a file"):
            buffer.save(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "real"]
