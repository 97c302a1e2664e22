"""Saves beside other people's files, and damage: what is of no use is not shared, and what is harmed has a name."""

from __future__ import annotations

import os

import pytest
from make import filled
from test_saves import Counting, assert_equal, frame_files, save, tiny_pieces  # noqa: F401 - a fixture

from fastrl.replay import PrioritizedReplayBuffer, ReplayBuffer
from fastrl.replay.saves.archive import INDEX
from fastrl.replay.saves.segments import Segment


@pytest.mark.parametrize(
    "how", ["no links", "truncated", "index", "missing", "file", "other settings", "later", "kind"]
)
def test_where_an_earlier_save_is_of_no_use_all_is_written(tmp_path, monkeypatch, how):
    buffer = filled(15, store=Counting)
    earlier = save(buffer, tmp_path / "earlier")
    if how == "no links":

        def refuse(*_):
            raise OSError("not supported")

        monkeypatch.setattr(os, "link", refuse)
    elif how == "truncated":
        os.truncate(frame_files(earlier)[0], 5)
    elif how == "index":
        (earlier / INDEX).write_bytes(b"broken")
    elif how == "missing":
        frame_files(earlier)[0].unlink()
    elif how == "file":
        earlier = tmp_path / "file"
        buffer.save(earlier)
    elif how == "other settings":
        earlier = save(filled(15, stack=3), tmp_path / "stacks of 3")
    elif how == "later":
        earlier = save(filled(18), tmp_path / "18")
    elif how == "kind":
        uniform = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), stack=2, gamma=0.5)
        earlier = save(uniform, tmp_path / "uniform")
    buffer._store.gathered = 0
    folder = save(buffer, tmp_path / "new", earlier)
    assert buffer._store.gathered == 30
    assert_equal(PrioritizedReplayBuffer.load(folder), buffer)


@pytest.mark.usefixtures("tiny_pieces")
def test_links_made_before_one_failed_are_taken_back(tmp_path, monkeypatch):
    buffer, made, link = filled(15), [], os.link
    earlier = save(buffer, tmp_path / "earlier")

    def twice(*paths):
        if len(made) == 2:
            raise OSError("too many links")
        made.append(paths)
        link(*paths)

    monkeypatch.setattr(os, "link", twice)
    folder = save(buffer, tmp_path / "new", earlier)
    assert len(made) == 2
    assert all(path.stat().st_nlink == 1 for path in folder.iterdir())
    assert_equal(PrioritizedReplayBuffer.load(folder), buffer)


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("name", ["frames-000001", "frames-000003", INDEX])
@pytest.mark.parametrize("harm", ["flipped", "truncated", "longer", "empty"])
def test_damage_is_refused_by_name(tmp_path, name, harm):
    folder = save(filled(15), tmp_path / "saved")
    path = folder / name
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        where = len(data) // 2 if name != INDEX else data.index(b"NUMPY") + 130
        data[where] ^= 1
    data = {"flipped": data, "truncated": data[:-1], "longer": data + b"x", "empty": b""}[harm]
    path.write_bytes(data)
    if name == INDEX and harm == "longer":  # of a zip, what follows the end is a comment that was cut
        return
    with pytest.raises(
        ValueError, match=f"{folder} is not a saved replay, or is damaged .*{'' if name == INDEX else name}"
    ):
        PrioritizedReplayBuffer.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(number=9), "frames-000009"),
        (lambda entry: entry.update(end=[15, 14]), "has 90 bytes instead of 87"),
        (lambda entry: entry.update(end=[15, 2**62]), "has 90 bytes instead of 13835058055282163757"),
        (lambda entry: entry.update(begin=[1, -1]), "ends before it begins"),
        (lambda entry: entry.update(begin=[16, 0], end=[15, 16]), "ends before it begins"),
        (lambda entry: entry.update(begin=[1, 0], end=[16, 15]), "frames before frames-000001 are missing"),
        (lambda entry: entry.update(end=[14, 16]), "other frames than its rows need"),
        (lambda entry: entry.update(begin=[0.0, 0.0]), "a cursor of its frames is invalid"),
        (lambda entry: entry.update(begin=[0]), "a cursor of its frames is invalid"),
        (lambda entry: entry.update(checksum=1), "frames-000001 differs from its checksum"),
        (lambda entry: entry.pop("end"), "end"),
    ],
    ids=lambda change: None,
)
def test_an_index_that_lies_is_refused_before_memory_is_taken(tmp_path, change, message):
    buffer = filled(15)
    in_progress = buffer.begin_save(tmp_path / "saved")
    as_json = Segment.as_json

    def lie(self):
        entry = as_json(self)
        change(entry)
        return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segment, "as_json", lie)
        in_progress.write()
    with pytest.raises((ValueError, OSError), match=message):
        PrioritizedReplayBuffer.load(tmp_path / "saved")
