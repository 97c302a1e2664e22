"""Plans of the replay as a table: settings and free bytes in, store, rows and limit out; and the words on them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fastrl.base.commands import install_command
from fastrl.config import DQNConfig
from fastrl.dqn.run import replay_plan
from fastrl.dqn.run.replay_plan import (
    BYTES_BESIDE_FRAME,
    DiskPlan,
    Memory,
    ReplayToLoad,
    describe,
    describe_disk,
    disk_refusal,
    plan_disk,
    plan_replay,
    refusal,
)
from fastrl.replay.saves import segments

FRAME, COMPRESSED, BESIDE = 7_056, 1_000, BYTES_BESIDE_FRAME
ROW, SMALL = FRAME + BESIDE, COMPRESSED + BESIDE
PLENTY = 10**12
# A run of 1,000 steps, hence at most 1,250 rows, that warms up for 50 steps: in 63 rows, and 2 * 2 * (4 + 3 + 1).
CONFIG = DQNConfig(num_envs=2, env_groups=1, total_frames=4_000, learn_start_steps=50)
FILLED, LEAST = 1_250, 95
SAVE = ReplayToLoad(Path("runs/a/replay"), 1_000)


def room(rows: int, row_bytes: int, share: float) -> int:
    """Return the fewest free bytes of which a share holds these rows."""
    return next(free for free in range(int(rows * row_bytes / share), PLENTY) if int(free * share) >= rows * row_bytes)


def planned(config=CONFIG, host=PLENTY, gpu=None, lz4=True, compressed=COMPRESSED, saved=None, disk=None):
    """Return the plan, and how often compressed frames were measured for it."""
    asked = []

    def compressed_bytes():
        asked.append(True)
        return compressed

    plan = plan_replay(
        config, FRAME, host, gpu, lz4_installed=lz4, compressed_bytes=compressed_bytes, saved=saved, disk_free=disk
    )
    return plan, len(asked)


def outcome(plan):
    """Return what a plan comes to: store, rows, what limits them, what lz4 would bring, whether it is refused."""
    limit = plan.limited_by and plan.limited_by.kind
    advice = "install lz4" if plan.lz4_missing else plan.lz4_rows
    return plan.store, plan.capacity, limit, advice, refusal(plan) is not None


# No setting gives the capacity: at most 0.6 of the free memory, and at least the warm-up.
CHOSEN = [
    # frame_store, host's free bytes, GPU's, lz4  ->  store, rows, limit, advice, refused  |  measured
    # --- on a CPU: compressed only if plain frames do not fit and compressed ones do
    ("auto", PLENTY, None, True, ("ram", FILLED, None, None, False), 0),
    ("auto", None, None, True, ("ram", FILLED, None, None, False), 0),
    ("auto", room(FILLED, ROW, 0.6), None, True, ("ram", FILLED, None, None, False), 0),
    ("auto", room(FILLED, ROW, 0.6) - 1, None, True, ("lz4", FILLED, None, None, False), 1),
    ("auto", room(FILLED, SMALL, 0.6), None, True, ("lz4", FILLED, None, None, False), 1),
    ("auto", room(FILLED, SMALL, 0.6) - 1, None, True, ("ram", 181, "host", FILLED - 1, False), 1),
    ("auto", room(FILLED, ROW, 0.6) - 1, None, False, ("ram", FILLED - 1, "host", "install lz4", False), 0),
    ("auto", room(LEAST, ROW, 0.6), None, True, ("ram", LEAST, "host", 652, False), 1),
    ("auto", room(LEAST, ROW, 0.6) - 1, None, True, ("ram", LEAST - 1, "host", 652, True), 1),
    ("auto", room(LEAST, ROW, 0.6) - 1, None, False, ("ram", LEAST - 1, "host", "install lz4", True), 0),
    ("auto", room(LEAST, SMALL, 0.6), None, True, ("ram", 13, "host", LEAST, True), 1),
    ("auto", room(LEAST, SMALL, 0.6) - 1, None, True, ("ram", 13, "host", None, True), 1),
    ("auto", 0, None, True, ("ram", 0, "host", None, True), 1),
    ("ram", PLENTY, None, True, ("ram", FILLED, None, None, False), 0),
    ("ram", room(FILLED, ROW, 0.6) - 1, None, True, ("ram", FILLED - 1, "host", FILLED, False), 1),
    ("lz4", PLENTY, None, True, ("lz4", FILLED, None, None, False), 1),
    ("lz4", None, None, True, ("lz4", FILLED, None, None, False), 1),
    ("lz4", room(600, SMALL, 0.6), None, True, ("lz4", 600, "host", None, False), 1),
    ("lz4", room(LEAST, SMALL, 0.6) - 1, None, True, ("lz4", LEAST - 1, "host", None, True), 1),
    ("device", PLENTY, None, True, ("device", FILLED, None, None, False), 0),
    ("device", room(600, ROW, 0.6), None, True, ("device", 600, "host", None, False), 0),
    # --- on a GPU: there if the frames fit, else plain in host memory
    ("auto", PLENTY, PLENTY, True, ("device", FILLED, None, None, False), 0),
    ("auto", PLENTY, room(FILLED, FRAME, 0.6), True, ("device", FILLED, None, None, False), 0),
    ("auto", PLENTY, room(FILLED, FRAME, 0.6) - 1, True, ("ram", FILLED, None, None, False), 0),
    ("auto", room(600, ROW, 0.6), 0, True, ("ram", 600, "host", FILLED, False), 1),
    ("auto", room(600, ROW, 0.6), 0, False, ("ram", 600, "host", "install lz4", False), 0),
    ("auto", room(300, BESIDE, 0.6), PLENTY, True, ("device", 300, "host", None, False), 0),
    ("ram", PLENTY, PLENTY, True, ("ram", FILLED, None, None, False), 0),
    ("lz4", PLENTY, PLENTY, True, ("lz4", FILLED, None, None, False), 1),
    ("device", PLENTY, room(480, FRAME, 0.6), True, ("device", 480, "gpu", None, False), 0),
    ("device", None, room(480, FRAME, 0.6), True, ("device", 480, "gpu", None, False), 0),
    ("device", room(300, BESIDE, 0.6), room(480, FRAME, 0.6), True, ("device", 300, "host", None, False), 0),
    ("device", PLENTY, room(LEAST, FRAME, 0.6) - 1, True, ("device", LEAST - 1, "gpu", None, True), 0),
]  # fmt: skip


@pytest.mark.parametrize(("frame_store", "host", "gpu", "lz4", "expected", "measured"), CHOSEN)
def test_without_a_capacity_the_plan_takes_what_the_run_can_fill_and_memory_allows(
    frame_store, host, gpu, lz4, expected, measured
):
    plan, asked = planned(CONFIG.replace(frame_store=frame_store), host, gpu, lz4)
    assert outcome(plan) == expected
    assert asked == measured


@pytest.mark.parametrize("gpu", [None, PLENTY])
@pytest.mark.parametrize(
    ("host", "disk", "expected"),
    [
        (PLENTY, PLENTY, ("mmap", FILLED, None, None, False)),
        (PLENTY, None, ("mmap", FILLED, None, None, False)),
        (room(FILLED, BESIDE, 0.6), room(FILLED, FRAME, 0.6), ("mmap", FILLED, None, None, False)),
        (PLENTY, room(480, FRAME, 0.6), ("mmap", 480, "disk", None, False)),
        (room(300, BESIDE, 0.6), room(480, FRAME, 0.6), ("mmap", 300, "host", None, False)),
        (PLENTY, room(LEAST, FRAME, 0.6) - 1, ("mmap", LEAST - 1, "disk", None, True)),
    ],
)
def test_frames_in_a_file_take_the_disk_and_columns_the_memory(host, disk, gpu, expected):
    plan, asked = planned(CONFIG.replace(frame_store="mmap"), host, gpu, disk=disk)
    assert outcome(plan) == expected
    assert not asked


@pytest.mark.parametrize("saved", [None, SAVE])
@pytest.mark.parametrize(
    ("host", "disk", "expected"),
    [
        (room(1_000, BESIDE, 0.9), room(1_000, FRAME, 0.9), ("mmap", 1_000, None, None, False)),
        (PLENTY, room(1_000, FRAME, 0.9) - 1, ("mmap", 1_000, "disk", None, True)),
        (room(1_000, BESIDE, 0.9) - 1, PLENTY, ("mmap", 1_000, "host", None, True)),
    ],
)
def test_a_capacity_that_is_given_is_in_a_file_whole_or_refused(host, disk, expected, saved):
    plan, _ = planned(CONFIG.replace(frame_store="mmap", capacity=1_000), host, disk=disk, saved=saved)
    assert outcome(plan) == expected


def test_a_replay_that_grows_with_its_run_grows_in_a_file_as_far_as_the_disk_allows():
    grows = SAVE._replace(grow=True)
    config = CONFIG.replace(frame_store="mmap")
    assert planned(config, disk=room(1_100, FRAME, 0.6), saved=grows)[0].capacity == 1_100
    assert planned(config, disk=room(1_000, FRAME, 0.9), saved=grows)[0].capacity == 1_000


# A setting or a save gives 1,000 rows: all of them or an error, at most 0.9 of the free memory.
GIVEN = [
    ("auto", PLENTY, None, True, ("ram", 1_000, None, None, False), 0),
    ("auto", None, None, True, ("ram", 1_000, None, None, False), 0),
    ("auto", room(1_000, ROW, 0.9), None, True, ("ram", 1_000, None, None, False), 0),
    ("auto", room(1_000, ROW, 0.9) - 1, None, True, ("lz4", 1_000, None, None, False), 1),
    ("auto", room(1_000, ROW, 0.9) - 1, None, False, ("ram", 1_000, "host", "install lz4", True), 0),
    ("auto", room(1_000, SMALL, 0.9) - 1, None, True, ("ram", 1_000, "host", 999, True), 1),
    ("ram", room(1_000, ROW, 0.9) - 1, None, True, ("ram", 1_000, "host", 1_000, True), 1),
    ("lz4", room(1_000, SMALL, 0.9), None, True, ("lz4", 1_000, None, None, False), 1),
    ("lz4", room(1_000, SMALL, 0.9) - 1, None, True, ("lz4", 1_000, "host", None, True), 1),
    ("device", room(1_000, ROW, 0.9) - 1, None, True, ("device", 1_000, "host", None, True), 0),
    ("auto", PLENTY, room(1_000, FRAME, 0.6), True, ("device", 1_000, None, None, False), 0),
    ("auto", PLENTY, room(1_000, FRAME, 0.6) - 1, True, ("ram", 1_000, None, None, False), 0),
    ("auto", room(1_000, ROW, 0.9) - 1, 0, True, ("ram", 1_000, "host", 1_000, True), 1),
    ("device", PLENTY, room(1_000, FRAME, 0.9), True, ("device", 1_000, None, None, False), 0),
    ("device", PLENTY, room(1_000, FRAME, 0.9) - 1, True, ("device", 1_000, "gpu", None, True), 0),
    ("device", room(1_000, BESIDE, 0.9) - 1, PLENTY, True, ("device", 1_000, "host", None, True), 0),
]  # fmt: skip


@pytest.mark.parametrize("saved", [None, SAVE])
@pytest.mark.parametrize(("frame_store", "host", "gpu", "lz4", "expected", "measured"), GIVEN)
def test_a_capacity_that_a_setting_or_a_save_gives_is_planned_whole_or_refused(
    frame_store, host, gpu, lz4, expected, measured, saved
):
    plan, asked = planned(CONFIG.replace(frame_store=frame_store, capacity=1_000), host, gpu, lz4, saved=saved)
    assert outcome(plan) == expected
    assert asked == measured


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (room(1_000, ROW, 0.6), ("ram", 1_000, None, None, False)),
        (room(1_000, ROW, 0.6) - 1, ("lz4", 1_000, None, None, False)),
        (room(1_000, SMALL, 0.6), ("lz4", 1_000, None, None, False)),
        (room(1_000, SMALL, 0.6) - 1, ("ram", 1_000, "host", 999, True)),
    ],
)
def test_a_save_whose_capacity_the_run_chose_gets_the_store_that_the_run_would_choose(free, expected):
    assert outcome(planned(host=free, saved=SAVE)[0]) == expected


def test_a_save_larger_than_the_run_would_choose_now_is_still_loaded():
    free = room(1_000, ROW, 0.9)
    assert outcome(planned(host=free, lz4=False, saved=SAVE)[0]) == ("ram", 1_000, None, "install lz4", False)
    assert outcome(planned(host=free - 1, lz4=False, saved=SAVE)[0]) == ("ram", 1_000, "host", "install lz4", True)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, FILLED),
        ({"total_frames": 400}, 125),
        ({"total_frames": 40}, LEAST - 63 + 2),  # one step of warm-up, a tenth of the run: two rows
        ({"total_frames": 100_000_000}, 1_000_000),
    ],
)
def test_a_chosen_capacity_is_what_the_run_can_fill_but_holds_the_warm_up_and_has_an_end(changes, rows):
    assert planned(CONFIG.replace(**changes))[0].capacity == rows


def test_a_capacity_that_cannot_hold_the_warm_up_is_refused_but_loaded_from_a_save():
    assert refusal(planned(CONFIG.replace(capacity=LEAST))[0]) is None
    small = CONFIG.replace(capacity=LEAST - 1)
    assert str(refusal(planned(small)[0])) == (
        "--capacity is 94; give 95 or more, so that it holds the warm-up, "
        "or shorten the warm-up with --learn-start-steps"
    )
    assert refusal(planned(small, saved=ReplayToLoad(SAVE.path, LEAST - 1))[0]) is None


def test_where_lz4_is_asked_for_but_missing_what_measures_it_says_so():
    def missing():
        raise ImportError("lz4")

    with pytest.raises(ImportError, match="lz4"):
        plan_replay(
            CONFIG.replace(frame_store="lz4"), FRAME, PLENTY, None, lz4_installed=False, compressed_bytes=missing
        )


GIB = 1 << 30
LARGE = CONFIG.replace(total_frames=100_000_000)  # a million rows: 6.6 GiB, or 1.0 compressed


@pytest.mark.parametrize(
    ("changes", "facts", "words"),
    [
        ({}, {"host": 100 * GIB}, "replay of 1,000,000 rows in 6.6 GiB"),
        ({"frame_store": "device"}, {"host": 100 * GIB}, "replay of 1,000,000 rows in 6.6 GiB"),
        ({"frame_store": "lz4"}, {"host": 100 * GIB}, "replay of 1,000,000 rows in up to 1.0 GiB, compressed by lz4"),
        (
            {},
            {"host": 10 * GIB},
            "replay of 1,000,000 rows in up to 1.0 GiB, compressed by lz4 "
            "(plain frames would take 6.6 GiB, and 10.0 GiB are free)",
        ),
        (
            {},
            {"host": GIB},
            "replay of 90,892 rows in 614.4 MiB (what memory allows; 624,268 would fit with --frame-store lz4)",
        ),
        (
            {},
            {"host": GIB, "lz4": False},
            "replay of 90,892 rows in 614.4 MiB (what memory allows; lz4 compresses most games' frames to a quarter or "
            "less: " + install_command("lz4") + ")",
        ),
        (
            {"frame_store": "lz4"},
            {"host": GIB},
            "replay of 624,268 rows in up to 614.4 MiB, compressed by lz4 (what memory allows)",
        ),
        ({}, {"host": 100 * GIB, "gpu": 80 * GIB}, "replay of 2,000,000 rows in 13.2 GiB on the GPU"),
        ({"frame_store": "ram"}, {"host": 100 * GIB, "gpu": 80 * GIB}, "replay of 1,000,000 rows in 6.6 GiB of memory"),
        ({}, {"host": 100 * GIB, "gpu": 20 * GIB}, "replay of 1,826,091 rows in 12.1 GiB on the GPU"),
        (
            {},
            {"host": 100 * GIB, "gpu": 8 * GIB},
            "replay of 1,000,000 rows in 6.6 GiB of memory, the GPU having 8.0 GiB free",
        ),
        (
            {"frame_store": "ram"},
            {"host": 100 * GIB, "gpu": 8 * GIB},
            "replay of 1,000,000 rows in 6.6 GiB of memory",
        ),
        (
            {"frame_store": "lz4"},
            {"host": 100 * GIB, "gpu": 8 * GIB},
            "replay of 1,000,000 rows in up to 1.0 GiB of memory, compressed by lz4",
        ),
        (
            {"frame_store": "device"},
            {"host": 100 * GIB, "gpu": 8 * GIB},
            "replay of 730,436 rows in 4.8 GiB on the GPU (what memory allows)",
        ),
        (
            {"frame_store": "mmap"},
            {"host": GIB, "disk": 100 * GIB},
            "replay of 1,000,000 rows in 6.6 GiB of memory and 6.6 GiB of disk",
        ),
        (
            {"frame_store": "mmap"},
            {"host": GIB, "gpu": 8 * GIB, "disk": GIB},
            "replay of 91,304 rows in 617.2 MiB of memory and 614.4 MiB of disk (what the disk allows)",
        ),
    ],
)
def test_a_plan_is_described_by_rows_size_place_and_reason(changes, facts, words):
    plan, _ = planned(LARGE.replace(**changes), **facts)
    assert refusal(plan) is None
    assert describe(plan, plan.capacity * ROW) == words


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        (
            {"capacity": 1_000_000},
            {"host": GIB},
            "--capacity is 1,000,000, which takes 6.6 GiB of the 1.0 GiB free; give 136,338 or less; "
            "936,402 would fit with --frame-store lz4",
        ),
        (
            {"capacity": 1_000_000},
            {"host": GIB, "lz4": False},
            "--capacity is 1,000,000, which takes 6.6 GiB of the 1.0 GiB free; give 136,338 or less; "
            "lz4 compresses most games' frames to a quarter or less: " + install_command("lz4"),
        ),
        (
            {"frame_store": "device"},
            {"host": GIB, "gpu": GIB, "saved": ReplayToLoad(SAVE.path, 1_000_000)},
            "the capacity of runs/a/replay is 1,000,000, which takes 6.6 GiB of the 1.0 GiB free on the GPU; "
            "give 136,956 or less, or keep the frames in memory with --frame-store ram",
        ),
        (
            {"learn_start_steps": 400_000},
            {"host": GIB},
            "1.0 GiB of memory are free, too little for a replay of 500,032 rows (3.3 GiB), which these settings need; "
            "free some, or lower --learn-start-steps or --num-envs; 624,268 would fit with --frame-store lz4",
        ),
        (
            {"learn_start_steps": 400_000, "frame_store": "device"},
            {"host": GIB, "gpu": GIB},
            "1.0 GiB of memory are free on the GPU, too little for a replay of 500,032 rows (3.3 GiB), which these "
            "settings need; free some, or lower --learn-start-steps or --num-envs, or keep the frames in memory with "
            "--frame-store ram",
        ),
        (
            {"frame_store": "mmap", "capacity": 1_000_000},
            {"host": GIB, "disk": GIB},
            "--capacity is 1,000,000, which takes 6.6 GiB of the 1.0 GiB free on the run's disk; give 136,956 or less, "
            "or keep the frames in memory with --frame-store auto",
        ),
        (
            {"frame_store": "mmap", "learn_start_steps": 400_000},
            {"host": GIB, "disk": GIB},
            "1.0 GiB of disk are free on the run's disk, too little for a replay of 500,032 rows (3.3 GiB), which "
            "these settings need; free some, or lower --learn-start-steps or --num-envs, or keep the frames in memory "
            "with --frame-store auto",
        ),
    ],
)
def test_a_refusal_names_what_is_asked_what_is_free_and_what_to_do(changes, facts, message):
    plan, _ = planned(LARGE.replace(**changes), **facts)
    assert str(refusal(plan)) == message


def test_the_memory_with_room_for_the_fewest_rows_is_the_one_that_limits():
    plan, _ = planned(CONFIG.replace(frame_store="device"), 300 * BESIDE, 480 * FRAME)
    assert plan.limited_by == Memory("host", 300 * BESIDE, BESIDE)
    plan, _ = planned(CONFIG.replace(frame_store="device"), 480 * BESIDE, 300 * FRAME)
    assert plan.limited_by == Memory("gpu", 300 * FRAME, FRAME)


@pytest.mark.parametrize(
    ("held", "steps", "every_frames", "share_files", "frames"),
    [
        # A ring of a few files: full, with one of overwritten rows (a sixteenth) and a small one (a 64th) that is
        # written again with the rows between two checkpoints.
        (0, 0, 400, True, 1_000 + 62 + 15 + 125),
        (0, 0, 400, False, 1_000 + 1_000),  # two whole saves
        (0, 0, 1_000_000, True, 1_000 + 62 + 1_000),  # more rows between two checkpoints than the ring has
        (0, 900, 400, True, 125 + 7 + 125),  # 125 rows are still to come
        (200, 900, 400, True, 325 + 20 + 5 + 125),
        (200, 1_000, 400, True, 200 + 12 + 3 + 125),  # no more rows come
        (200, 1_001, 400, False, 200 + 200),
        (1_000, 1_000, 400, True, 1_000 + 62 + 15 + 125),
    ],
)
def test_the_disk_is_for_the_rows_to_come_and_for_two_saves_that_may_share_files(
    monkeypatch, held, steps, every_frames, share_files, frames
):
    monkeypatch.setattr(segments, "PIECE", FRAME)
    config = CONFIG.replace(checkpoint_every_frames=every_frames)
    plan = plan_disk(config, FRAME, 1_000, 5, held=held, steps=steps, share_files=share_files)
    rows = min(1_000, held + max(0, 1_000 - steps) * 5 // 4)
    assert plan == DiskPlan(frames * FRAME + 2 * rows * BESIDE, 5)


def test_a_replay_of_less_than_a_piece_is_written_whole_each_time():
    plan = plan_disk(CONFIG, FRAME, 1_000, 5, held=0, steps=0, share_files=True)
    assert segments.PIECE > 1_000 * FRAME
    assert plan.needed == 2 * 1_000 * ROW


@pytest.mark.parametrize(("keep", "frames", "checkpoints"), [(4, 4_000, 7), (100, 4_000, 13), (4, 800, 5)])
def test_the_disk_is_for_the_networks_of_all_checkpoints_too(keep, frames, checkpoints):
    config = CONFIG.replace(keep_checkpoints=keep, checkpoint_every_frames=400, total_frames=frames)
    with_networks, without = (
        plan_disk(config, FRAME, 1_000, 5, held=0, steps=0, share_files=True, beside=bytes_) for bytes_ in (10**9, 0)
    )
    assert with_networks.needed - without.needed == with_networks.networks == checkpoints * 10**9


def test_a_disk_is_refused_by_one_byte_and_the_words_name_both_sizes():
    run = Path("runs/a")
    plan = DiskPlan(3 * GIB, 3 * GIB)
    assert disk_refusal(plan, run) is None
    assert describe_disk(plan) == "; up to 3.0 GiB of disk for checkpoints with it"
    assert str(disk_refusal(plan._replace(free=3 * GIB - 1), run)) == (
        "runs/a needs up to 3.0 GiB of disk for checkpoints with the replay, 3.0 GiB are free; free some, give another "
        "--runs-dir or a smaller --capacity, or leave the replay out with --no-checkpoint-replay"
    )


def test_a_smaller_replay_is_no_remedy_where_the_networks_alone_have_no_room():
    plan = DiskPlan(3 * GIB, 2 * GIB, 2 * GIB)
    assert "free some, give another --runs-dir, or leave the replay out" in str(disk_refusal(plan, Path("a")))
    assert "free some, or leave the replay out" in str(disk_refusal(plan, Path("/")))
    assert "or a smaller --capacity, or leave" in str(disk_refusal(plan._replace(networks=GIB), Path("a")))


def test_networks_without_the_replay_are_all_that_a_run_without_it_needs():
    config = CONFIG.replace(checkpoint_replay=False)
    plan = plan_disk(config, FRAME, 1_000, 5, held=0, steps=0, share_files=True, beside=100)
    assert plan.needed == plan.networks > 0


def test_what_does_not_help_is_no_remedy_where_the_networks_alone_have_no_room():
    smaller = "or start a run with a smaller network (--trunk, --width, --hidden) or a lower --keep-checkpoints"
    assert str(disk_refusal(DiskPlan(3 * GIB, GIB, 2 * GIB), Path("a"))) == (
        "a needs up to 3.0 GiB of disk for checkpoints with the replay and 2.0 GiB without it, 1.0 GiB are free; "
        f"free some, give another --runs-dir, {smaller}"
    )
    assert str(disk_refusal(DiskPlan(2 * GIB, GIB, 2 * GIB), Path("/"))) == (
        f"/ needs up to 2.0 GiB of disk for checkpoints, 1.0 GiB are free; free some, {smaller}"
    )


def test_the_plan_asks_the_machine_nothing():
    tree = ast.parse(Path(replay_plan.__file__).read_text())
    imports = {
        (node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for module, name in imports if module == "fastrl.base.machine"} == {"bytes_in_words"}
    assert modules == {"math", "sys"}  # no torch, no os
    assert not any(module.startswith(("fastrl.dqn", "fastrl.envs")) for module, _ in imports)
