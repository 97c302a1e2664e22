"""Observations of several arrays: how they are nested, and what of the buffer works for them as for one array."""

from __future__ import annotations

import copy
import functools
import os
import pickle

import numpy as np
import pytest
from make import NO, header_of, refused, step

from fastrl.replay import Batch, Lz4Store, PrioritizedReplayBuffer, RamStore, ReplayBuffer
from fastrl.replay import buffer as buffer_module
from fastrl.replay.saves import archive

SHAPES = {"image": (2, 3), "in": ((), (4,))}
DTYPES = {"image": np.uint8, "in": (np.int16, np.float32)}
STACKS = {"image": 3, "in": (1, 2)}


def build(kind=PrioritizedReplayBuffer, **changes):
    settings = {
        "capacity": 60, "num_envs": 2, "obs_shape": SHAPES, "obs_dtype": DTYPES, "stack": STACKS, "n_step": 2,
        "gamma": 0.5, "seed": 0,
    }  # fmt: skip
    return kind(**settings | changes)


def frames(t):
    """What a vector step holds in which every number is t."""
    return {
        "image": np.full((2, 2, 3), t, np.uint8),
        "in": (np.full(2, t, np.int16), np.full((2, 4), t, np.float32)),
    }


def rows(t, **changes):
    return step(t) | {"obs": frames(t)} | changes


def filled(steps=40, **changes):
    buffer = build(**changes)
    for t in range(steps):
        buffer.add(**rows(t))
    return buffer


def arrays(batch):
    """All arrays of a batch by name."""
    obs = {f"{name}{i}": a for name in ("obs", "next_obs") for i, a in enumerate(leaves(getattr(batch, name)))}
    extra = {f"{name}{key}": a for name in ("extra", "next_extra") for key, a in getattr(batch, name).items()}
    rest = ("action", "reward", "discount", "weight", "index")
    return obs | extra | {name: getattr(batch, name) for name in rest}


def leaves(obs):
    return [obs["image"], *obs["in"]]


def assert_same(one, other):
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert np.array_equal(array, other[name]), name


def test_each_array_has_a_stack_of_its_own_and_batches_are_nested_as_rows_are(kernels, stores):
    batch = filled().sample(16)
    assert list(batch.obs) == ["image", "in"]
    assert isinstance(batch.obs["in"], tuple)
    assert [array.shape for array in leaves(batch.obs)] == [(16, 3, 2, 3), (16, 1), (16, 2, 4)]
    assert [array.dtype for array in leaves(batch.next_obs)] == [np.uint8, np.int16, np.float32]
    t = np.abs(batch.action[:, None])  # of environment 1 it is -t
    assert np.array_equal(batch.obs["image"][..., 0, 0], t + np.arange(-2, 1))
    assert np.array_equal(batch.obs["in"][0], t)
    assert np.array_equal(batch.next_obs["in"][1][..., 3], t + np.arange(1, 3))


def test_a_row_can_be_drawn_while_its_deepest_stack_is_held():
    buffer = filled(steps=35)  # 30 rows a ring: rows 5 to 34
    drawn = np.unique(np.abs(buffer.sample(500).action))
    assert drawn.tolist() == list(range(7, 33))  # the image of row 7 needs row 5, its return rows 8 and 9
    shallow = filled(steps=35, stack=1)
    assert np.unique(np.abs(shallow.sample(500).action)).tolist() == list(range(5, 33))


def test_one_value_stands_for_all_arrays_or_for_those_of_a_part():
    pytest.importorskip("lz4.block")
    buffer = build(stack={"image": 4, "in": 2}, obs_dtype=np.int64, store={"image": "lz4", "in": "ram"})
    assert buffer.settings["stack"] == {"image": 4, "in": (2, 2)}
    assert buffer.settings["obs_dtype"] == {"image": "<i8", "in": ("<i8", "<i8")}
    assert [type(store) for store in buffer._store.stores] == [Lz4Store, RamStore, RamStore]


def test_a_dictionary_of_one_array_gives_what_that_array_alone_gives():
    one = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), stack=2, seed=0)
    nested = ReplayBuffer(capacity=40, num_envs=2, obs_shape={"only": (3,)}, stack=2, seed=0)
    for t in range(30):
        one.add(**step(t))
        nested.add(**step(t) | {"obs": {"only": step(t)["obs"]}})
    first, second = one.sample(9), nested.sample(9)
    assert np.array_equal(first.next_obs, second.next_obs["only"])
    assert np.array_equal(first.index, second.index)


def test_the_order_of_the_names_in_a_row_does_not_matter():
    one, other = filled(), build()
    for t in range(40):
        other.add(**rows(t, obs=dict(reversed(frames(t).items()))))
    assert_same(one.sample(9), other.sample(9))
    assert list(other.sample(2).obs) == ["image", "in"]


@pytest.mark.parametrize("stores", [{"image": "lz4", "in": ("ram", "lz4")}, functools.partial(RamStore, threads=2)])
def test_the_values_of_a_batch_do_not_depend_on_the_stores(stores):
    if isinstance(stores, dict):
        pytest.importorskip("lz4.block")
    one, other = filled(), filled(store=stores)
    for _ in range(5):
        assert_same(one.sample(9), other.sample(9))


def test_arrays_that_match_take_one_call_and_others_add_the_same_rows(monkeypatch):
    fast, plain, strange = build(), build(), build()
    plain._appender = None
    for t in range(40):
        plain.add(**rows(t))
        strange.add(**rows(t, obs={name: frames(t)[name] for name in ("in", "image")}, action=[t, -t]))
    monkeypatch.setattr(buffer_module, "check_rows", nobody)
    for t in range(40):
        fast.add(**rows(t))
    for other in (plain, strange):
        assert_same(fast.sample(9), other.sample(9))
        fast.reseed(0)
        other.check()


def nobody(*_):
    raise AssertionError("the plain path was taken")


@pytest.mark.parametrize("autoreset", ["same_step", "disabled"])
@pytest.mark.parametrize("how", ["nested", "one by one", "a list"])
def test_final_observations_come_nested_or_one_for_each_environment(autoreset, how):
    buffer = build(autoreset=autoreset, n_step=1)
    last = frames(99)
    entry = {"image": last["image"][1], "in": (last["in"][0][1], last["in"][1][1])}
    given = {"nested": last, "one by one": np.array([None, entry], object), "a list": ["not read", entry]}[how]
    for t in range(20):
        ends = {"truncated": np.array([False, True]), "final_obs": given} if t == 9 else {}
        buffer.add(**rows(t, **ends))
    batch = buffer.sample(400)
    ended = batch.action == -9
    assert ended.any()
    assert np.array_equal(np.unique(batch.next_obs["image"][ended][:, :, 0, 0], axis=0), [[8, 9, 99]])
    assert set(batch.next_obs["in"][0][ended].ravel()) == {99}
    assert (batch.discount[ended] == 0.5).all()
    buffer.check()


def test_a_terminated_row_without_one_of_its_final_arrays_repeats_that_and_forbids_to_continue():
    buffer = build(autoreset="same_step", n_step=1)
    for t in range(5):
        buffer.add(**rows(t))
    final = {"image": list(frames(99)["image"]), "in": ([None, None], frames(99)["in"][1])}
    buffer.add(**rows(5, terminated=np.array([True, False]), final_obs=final))
    with refused(buffer, "first is False after a done whose final_obs was None"):
        buffer.add(**rows(6, first=NO))
    buffer.add(**rows(6))
    batch = buffer.sample(200)
    ended = batch.discount == 0
    assert set(batch.next_obs["image"][ended][:, -1, 0, 0]) == {99}
    assert set(batch.next_obs["in"][0][ended].ravel()) == {5}
    buffer.check()


BAD_ROWS = [
    ({"obs": frames(1)["image"]}, "obs is of type ndarray; give a dictionary of 'image', 'in'"),
    ({"obs": None}, "obs is None; give a dictionary"),
    ({"obs": frames(1) | {"more": 1}}, "obs is a dictionary of 'image', 'in', 'more'; give"),
    ({"obs": frames(1) | {"in": frames(1)["in"][:1]}}, r"obs\['in'\] is a tuple of 1; give a tuple of 2"),
    ({"obs": frames(1) | {"image": np.zeros((2, 3, 2), np.uint8)}}, r"obs\['image'\] has shape \(2, 3, 2\); expected"),
    ({"obs": frames(1) | {"in": (np.zeros(2, np.int16), np.zeros((2, 4)))}}, r"obs\['in'\]\[1\] is float64; expected"),
    ({"obs": frames(1) | {"image": None}}, r"obs\['image'\] has shape \(\)"),
    ({"action": [2**64, 0]}, "action is object"),
    ({"extra": {}}, "extra is a dictionary of nothing; leave it out"),
    ({"final_obs": frames(1)}, "final_obs is given, but with autoreset='next_step'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ROWS)
def test_rows_that_do_not_fit_are_named_and_leave_nothing_behind(stores, changes, message):
    buffer = filled()
    with refused(buffer, message):
        buffer.add(**rows(1, **changes))


def test_a_store_that_cannot_write_leaves_all_others_as_they_were(monkeypatch):
    pytest.importorskip("lz4.block")
    buffer = filled(store={"image": "lz4", "in": "lz4"})
    monkeypatch.setattr(buffer._store.stores[2], "prepare", no_memory)
    with refused(buffer, "no memory", MemoryError):
        buffer.add(**rows(99))


def no_memory(*_):
    raise MemoryError("no memory")


class Custom(RamStore):
    """A store of one's own, which has only what a `FrameStore` must have."""

    prepare = None


def test_a_store_of_ones_own_writes_before_those_that_cannot_fail(monkeypatch):
    one, other = filled(), filled(store={"image": "ram", "in": (Custom, "ram")})
    assert_same(one.sample(9), other.sample(9))
    monkeypatch.setattr(other._store.stores[1], "write", no_memory)
    with refused(other, "no memory", MemoryError):
        other.add(**rows(99))


# --- batches ------------------------------------------------------------------------------------------


def test_a_batch_of_which_one_array_is_held_is_not_overwritten():
    buffer = filled()
    held = buffer.sample(16).next_obs["in"][1][3:]  # a view of one array
    before = held.copy()
    for _ in range(20):
        buffer.sample(16)
    assert np.array_equal(held, before)


def test_arrays_come_from_the_pool_again_once_nothing_holds_them():
    buffer = filled()
    first = buffer.sample(16).obs["image"].ctypes.data
    assert buffer.sample(16).obs["image"].ctypes.data == first


def test_a_prefetched_batch_is_the_one_that_would_have_been_drawn():
    one, other = filled(), filled()
    for t in range(60):
        other.prefetch(9)
        for buffer in (one, other):
            if buffer is one:
                drawn = one.sample(9)
            buffer.add(**rows(t))
        assert_same(drawn, other.sample(9))


def test_out_takes_arrays_nested_as_batches_are():
    one, other = filled(), filled()
    drawn = one.sample(9)
    out = copy.deepcopy(drawn)
    assert other.sample(9, out=out) is out
    assert_same(drawn, out)
    bad = {
        "out.obs is of type ndarray; give a dictionary": out.obs["image"],
        r"out.obs\['image'\] is float64": out.obs | {"image": out.obs["image"] * 1.0},
        "two arrays of out share their memory": out.obs | {"image": out.next_obs["image"]},
    }
    for message, obs in bad.items():
        named = {name: getattr(out, name) for name in Batch.__slots__} | {"obs": obs}
        with refused(other, message):
            other.sample(9, out=Batch(**named))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_a_copy_goes_on_by_itself(copied):
    buffer = filled()
    other, store = copied(buffer), copied(buffer._store)
    for t in range(40, 80):
        other.add(**rows(t))
    store.write(np.arange(60), [array[:1].repeat(60, axis=0) for array in leaves(frames(7))])
    assert_same(buffer.sample(9), filled().sample(9))
    other.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_takes_a_prefetched_batch_too():
    buffer = filled()
    wanted = filled().sample(9)
    buffer.prefetch(9)
    child = os.fork()
    if child == 0:
        try:
            assert_same(buffer.sample(9), wanted)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert_same(buffer.sample(9), wanted)


# --- saves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["ram", {"image": "lz4", "in": ("lz4", "ram")}])
@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_a_loaded_buffer_draws_what_the_saved_one_would_have_drawn(tmp_path, store, kind):
    if store != "ram":
        pytest.importorskip("lz4.block")
    buffer = filled(kind=kind, store=store)
    buffer.save(tmp_path / "replay")
    buffer.begin_save(tmp_path / "first").write()
    for t in range(40, 47):
        buffer.add(**rows(t))
    buffer.begin_save(tmp_path / "second", tmp_path / "first").write()
    loaded = kind.load(tmp_path / "replay", store)
    for t in range(40, 47):
        loaded.add(**rows(t))
    shared = kind.load(tmp_path / "second")
    for other in (loaded, shared):
        assert other.settings == buffer.settings
        buffer_again = copy.deepcopy(buffer)
        for _ in range(3):
            assert_same(buffer_again.sample(9), other.sample(9))
    assert kind.saved_settings(tmp_path / "second")["obs_shape"] == {"image": [2, 3], "in": [[], [4]]}


def test_a_single_array_is_saved_in_the_format_of_before_and_several_in_the_next(tmp_path):
    filled().save(tmp_path / "several")
    ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,)).save(tmp_path / "one")
    own = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(3,), extra={"own": ((), bool)})
    own.save(tmp_path / "own")
    headers = {name: header_of(tmp_path / name) for name in ("one", "several", "own")}
    assert {name: header["format"] for name, header in headers.items()} == {"one": 2, "several": 3, "own": 3}
    assert (
        list(headers["one"]["settings"])
        == (
            "capacity num_envs obs_shape obs_dtype action_shape action_dtype stack stack_padding n_step gamma autoreset"
        ).split()
    )
    assert archive.FORMAT == 2


def test_a_store_that_is_nested_in_another_way_is_not_called_damage(tmp_path):
    filled().save(tmp_path / "replay")
    with pytest.raises(ValueError, match=r"^store is a dictionary of 'image'; give a dictionary of 'image', 'in'"):
        PrioritizedReplayBuffer.load(tmp_path / "replay", {"image": "ram"})
    with pytest.raises(ValueError, match=r"^store\['image'\] is 'disk'; give 'ram', 'lz4'"):
        PrioritizedReplayBuffer.load(tmp_path / "replay", {"image": "disk", "in": "ram"})


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_shape": {}}, "obs_shape is empty"),
        ({"obs_shape": {"a": {}}}, r"obs_shape\['a'\] is empty"),
        ({"obs_shape": ((2,), {"a": 3})}, r"obs_shape\[1\]\['a'\] is 3; give a tuple of lengths"),
        ({"obs_shape": {"a": (0,)}}, r"obs_shape\['a'\] is 0; give an integer from 1 up"),
        ({"obs_shape": {"a": "84"}}, r"obs_shape\['a'\] is '84'; give a tuple"),
        ({"obs_shape": {"a": (2**62,)}}, r"obs_shape\['a'\] is .*fewer than 2\*\*63 bytes"),
        ({"obs_shape": {"a": ()}, "obs_dtype": {"a": "str"}}, r"obs_dtype\['a'\] is <U0; give a boolean"),
        ({"obs_shape": {"a": ()}, "stack": {"a": 0}}, r"stack\['a'\] is 0; give an integer from 1 up"),
        ({"obs_shape": {"a": ()}, "stack": {"b": 1}}, "stack is a dictionary of 'b'; give a dictionary of 'a', as"),
        ({"obs_shape": {"a": ()}, "stack": {"a": {"b": 1}}}, r"stack\['a'\] is {'b': 1}; give an integer"),
        ({"obs_shape": ((), ()), "stack": (1, 2, 3)}, "stack is a tuple of 3; give a tuple of 2"),
        ({"obs_shape": {"a": ()}, "store": {"a": "zip"}}, r"store\['a'\] is 'zip'; give"),
        ({"extra": {"a": (3, bool)}}, r"shape of extra\['a'\] is 3; give a tuple of lengths"),
        ({"extra": {"a": ((3,), "str")}}, r"dtype of extra\['a'\] is <U0; give a boolean or numeric one"),
        ({"extra": {"a": ((), bool)}, "next_extra": ("b",)}, "next_extra names 'b'"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**{"capacity": 40, "num_envs": 2, "obs_shape": (3,)} | changes)


def test_the_deepest_stack_counts_for_the_room_of_a_ring():
    with pytest.raises(ValueError, match=r"stack \+ n_step \+ 1 = 6 are needed: give capacity=12 or more"):
        build(capacity=10)
    build(capacity=12)


# --- spaces -------------------------------------------------------------------------------------------


class Space:
    """What is looked at of a space of Gymnasium's."""

    def __init__(self, shape=None, dtype=None, spaces=None):
        self.shape, self.dtype = shape, dtype
        if spaces is not None:
            self.spaces = spaces


IMAGE, NUMBER = Space((2, 3), np.dtype(np.uint8)), Space((), np.dtype(np.int64))


def test_a_buffer_is_built_from_spaces_nested_alike():
    observation = Space(spaces={"image": IMAGE, "in": Space(spaces=(NUMBER, Space((4,), np.float32)))})
    buffer = PrioritizedReplayBuffer.for_spaces(
        observation, Space((2,), np.float32), capacity=60, num_envs=2, stack=STACKS, obs_dtype=DTYPES
    )
    wanted = {"obs_shape": SHAPES, "obs_dtype": {"image": "|u1", "in": ("<i2", "<f4")}, "action_shape": (2,)}
    assert {name: buffer.settings[name] for name in wanted} == wanted
    assert buffer.settings["action_dtype"] == "<f4"


def test_a_space_of_one_array_gives_a_buffer_of_one_array():
    buffer = ReplayBuffer.for_spaces(IMAGE, NUMBER, capacity=60, num_envs=2)
    assert (buffer.settings["obs_shape"], buffer.settings["action_shape"]) == ((2, 3), ())


def test_spaces_of_gymnasium_are_understood():
    spaces = pytest.importorskip("gymnasium.spaces")
    observation = spaces.Dict(
        {"image": spaces.Box(0, 255, (2, 3), np.uint8), "in": spaces.Tuple([spaces.Discrete(5), spaces.MultiBinary(4)])}
    )
    buffer = ReplayBuffer.for_spaces(observation, spaces.MultiDiscrete([3, 4]), capacity=60, num_envs=2)
    assert buffer.settings["obs_shape"] == {"image": (2, 3), "in": ((), (4,))}
    assert buffer.settings["obs_dtype"] == {"image": "|u1", "in": ("<i8", "|i1")}
    assert buffer.settings["action_shape"] == (2,)
    for bad in (spaces.Text(3), spaces.Sequence(spaces.Discrete(2))):
        with pytest.raises(ValueError, match=r"observation_space\['bad'\] is .* holds no arrays"):
            ReplayBuffer.for_spaces(spaces.Dict({"bad": bad}), spaces.Discrete(2), capacity=60, num_envs=2)
