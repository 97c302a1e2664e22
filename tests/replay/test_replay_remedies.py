"""The remedy that each message of the replay names exists, and works.

Every case provokes a message, checks what it says, and then does as it says. The last test reads the source: a message
without a case fails it.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import shutil
import sys
import threading
import tomllib
import zipfile
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from make import NO, altered, filled, small, step

from fastrl.replay import Batch, Hindsight, PrioritizedReplayBuffer, RamStore, ReplayBuffer, SumTree, buffer
from fastrl.replay.checks import Settings
from fastrl.replay.sequences import sequence_priority

ROOM = Path(buffer.__file__).parent
CHECKS = ROOM.parent / "base" / "checks.py"
ELSEWHERE = {  # messages of that file which no call of the replay can meet, and messages that other tests provoke
    "checks.py": ("check_state", "at_least", "share", "indices"),
    "buffer.py": ("_Barred",),  # test_forks.py and test_replay_folder.py, with its remedies
    "folder.py": ("ReplayFolder", "_holds_replay", "_locked"),  # what a disk answers: test_replay_folder.py
}
PROJECT = ROOM.parent.parent / "pyproject.toml"
ENDS = np.array([False, True])
CASES = []


def case(words, error=ValueError):
    """Note a case, a function of a folder for files.

    It returns the call that is refused, and what does as the message says, given the message.
    """

    def note(function):
        CASES.append((function, words, error))
        return function

    return note


def named(message, setting):
    """Return the value that a message gives a setting, as in ``capacity=8 or more``."""
    return ast.literal_eval(re.search(rf"\b{setting}=('[^']*'|\[[^]]*\]|[\w.+-]+)", message)[1])


def last_number(message):
    return float(re.findall(r"[-+.\d]+(?:e[-+]\d+)?", message)[-1])


# --- settings -----------------------------------------------------------------------------------------


@case("which is no regular file; give the name of a file")
def a_save_into_a_folder(folder):
    return lambda: filled().save(folder), lambda said: filled().save(folder / "replay")


@case("path is 5, which is no path; give one as text or as a pathlib.Path")
def a_number_for_a_path(folder):
    return lambda: filled().save(5), lambda said: filled().save(folder / "replay")


@case("folder is b'home', which is no path; give one as text")
def bytes_for_a_folder(folder):
    return lambda: small(store="mmap", folder=b"home"), lambda said: small(store="mmap", folder=str(folder / "home"))


@case("folder is ''; give the path of a place, such as './replay'")
def an_empty_text_for_a_folder(folder):
    def remedied(said):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            small(store="mmap", folder=re.search("such as '(.*)'", said)[1]).close()
            filled().begin_save("./saved").close()

    return lambda: small(store="mmap", folder=""), remedied


@case("path is 'a\\x00b', which is no path (embedded null byte); give another name")
def a_nul_in_a_path(folder):
    return lambda: filled().save("a\0b"), lambda said: filled().save(folder / "ab")


def at_home(call):
    """Return a case of a path that begins with ``~``, which a call takes."""

    def function(folder):
        def at(path):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HOME", str(folder))
                patch.chdir(folder)
                call(path)

        def remedied(said):
            assert list(folder.iterdir()) == []
            at(whole := re.search("give '(.*)'$", said)[1])
            assert Path(whole).exists()

        return lambda: at("~/replay"), remedied

    return function


@case("folder is '~/replay', whose '~' Python does not expand; give '")
def a_home_for_a_folder(folder):
    return at_home(lambda path: small(store="mmap", folder=path).close())(folder)


@case("path is '~/replay', whose '~' Python does not expand; give '")
def a_home_for_a_save(folder):
    return at_home(lambda path: filled().save(path))(folder)


@case("folder is '~/replay', whose '~' Python does not expand; give '")
def a_home_for_a_save_in_pieces(folder):
    return at_home(lambda path: filled().begin_save(path).write())(folder)


@case("missing'; make it, or give another path", FileNotFoundError)
def a_save_into_a_folder_that_is_missing(folder):
    def remedied(said):
        Path(re.search("there is no folder '(.*)'; make it", said)[1]).mkdir()
        filled().save(folder / "missing" / "replay")
        filled().begin_save(folder / "missing" / "saved").write()

    return lambda: filled().save(folder / "missing" / "replay"), remedied


@case("missing'; make it, or give another path", FileNotFoundError)
def a_save_in_pieces_into_a_folder_that_is_missing(folder):
    return (
        lambda: filled().begin_save(folder / "missing" / "saved"),
        lambda said: filled().begin_save(folder / "saved").write(),
    )


@case("saved', which is there already; give the name of a new folder", FileExistsError)
def a_save_in_pieces_into_a_folder_that_is_there(folder):
    (folder / "saved").mkdir()
    return lambda: filled().begin_save(folder / "saved"), lambda said: filled().begin_save(folder / "new").write()


@case("path is '/proc/replay', which cannot be written (", OSError)
def a_save_where_nothing_can_be_written(folder):
    return lambda: filled().save("/proc/replay"), lambda said: filled().save(folder / "replay")


@case("file/replay', which cannot be written (Not a directory); give a path with room", NotADirectoryError)
def a_save_below_a_file(folder):
    (folder / "file").touch()
    return lambda: filled().begin_save(folder / "file" / "replay"), lambda said: filled().save(folder / "replay")


@case("flush is for a buffer with a folder (store='mmap'), and this one has none; call save")
def a_flush_without_a_folder(folder):
    return lambda: filled().flush(), lambda said: filled().save(folder / "replay")


@case("period is 5 and length 4, so that steps between two stretches would never be drawn; give a period from 1 to 4")
def a_period_longer_than_its_stretches(folder):
    replay = filled()
    return lambda: replay.sample_sequences(2, 4, period=5), lambda said: replay.sample_sequences(2, 4, period=4)


@case("stacked is 'no'; give True or False")
def a_stacked_that_is_no_bool(folder):
    replay = filled()
    return lambda: replay.sample_sequences(2, 4, stacked="no"), lambda said: replay.sample_sequences(
        2, 4, stacked=False
    )


@case("of one environment, but each has 20; give less, or build the buffer with capacity=")
def a_stretch_longer_than_a_ring(folder):
    return (
        lambda: filled().sample_sequences(2, 30),
        lambda said: filled(60, capacity=named(said, "capacity")).sample_sequences(2, 30),
    )


@case(
    "no stretch of 10 steps can be drawn yet: 4 rows held; add more before the first sample, or give a smaller length"
)
def a_stretch_before_there_are_steps(folder):
    return lambda: filled(2).sample_sequences(2, 10), lambda said: filled(30).sample_sequences(2, 10)


@case("error has shape (2, 3); give one for each step behind the burn-in, (2, 4)")
def errors_of_another_length(folder):
    replay = filled()
    batch = replay.sample_sequences(2, 4, 2)
    return (
        lambda: replay.update_sequence_priorities(batch, np.ones((2, 3))),
        lambda said: replay.update_sequence_priorities(batch, np.ones((2, 4))),
    )


@case("error holds -1.0; give absolute TD errors, finite numbers from 0 up")
def errors_with_a_sign(folder):
    replay = filled()
    batch = replay.sample_sequences(2, 4)
    return (
        lambda: replay.update_sequence_priorities(batch, -np.ones((2, 4))),
        lambda said: replay.update_sequence_priorities(batch, np.ones((2, 4))),
    )


@case("mask has no step in a stretch; give the mask of the batch, from its burn_in on")
def a_mask_without_a_step(folder):
    mask = np.array([[True, False], [True, True]])
    return lambda: sequence_priority(np.ones((2, 2)), ~mask), lambda said: sequence_priority(np.ones((2, 2)), mask)


@case("store is 'mmap', but folder is None; give the folder that holds its files")
def files_without_a_folder(folder):
    return lambda: small(store="mmap"), lambda said: small(store="mmap", folder=folder / "home")


@case("store['a'] is 'mmap', but a folder holds all arrays of a row; give store='mmap' and folder")
def files_of_one_array(folder):
    nested = {"capacity": 9, "num_envs": 1, "obs_shape": {"a": (2,), "b": ()}, "seed": 0}
    return (
        lambda: ReplayBuffer(**nested, store={"a": "mmap", "b": "ram"}),
        lambda said: ReplayBuffer(**nested, store="mmap", folder=folder / "home"),
    )


@case("batch is of type Batch; give a batch of sample_sequences")
def sequences_without_a_sequence(_):
    replay, error = filled(), np.ones((2, 3))
    return (
        lambda: replay.update_sequence_priorities(replay.sample(2), error),
        lambda said: replay.update_sequence_priorities(replay.sample_sequences(2, 3), error),
    )


@case("folder is given, but store is 'ram'; give store='mmap', or no folder")
def a_folder_without_files(folder):
    return lambda: small(folder=folder / "home"), lambda said: small(store="mmap", folder=folder / "home")


@case("is the folder of a buffer with store='mmap', which from_folder takes")
def a_folder_that_is_no_save(folder):
    small(store="mmap", folder=folder / "home").close()
    kind = PrioritizedReplayBuffer
    return lambda: kind.load(folder / "home"), lambda said: kind.from_folder(folder / "home")


@case("a save is in progress; write or close it before you close the buffer")
def a_buffer_closed_while_it_is_saved(folder):
    replay = small(store="mmap", folder=folder / "home")
    save = replay.begin_save(folder / "save")

    def remedy(said):
        save.close()
        replay.close()

    return replay.close, remedy


@case("capacity is 4, which is 2 rows for each of 2 environments; stack + n_step + 1 = 4 are needed: give capacity=8")
def too_small(folder):
    return lambda: small(capacity=4), lambda said: small(capacity=named(said, "capacity"))


@case("or n_step=17 or less")
def an_n_step_too_large_for_the_rings(folder):
    replay = filled()
    return lambda: replay.set_n_step(18), lambda said: replay.set_n_step(named(said, "n_step"))


@case("stack + n_step + 1 = 71 are needed: give capacity=142 or more")
def a_stack_and_an_n_step_too_large_for_the_rings(folder):
    large = {"stack": 40, "n_step": 30}
    return lambda: small(**large), lambda said: small(**large, capacity=named(said, "capacity"))


@case("or stack=18 or less")
def a_stack_too_large_for_the_rings(folder):
    return lambda: small(stack=40), lambda said: small(stack=named(said, "stack"))


@case("num_envs is 0; give an integer from 1 up")
def no_environment(folder):
    return lambda: small(num_envs=0), lambda said: small(num_envs=1)


@case("capacity is above 2**63 - 1; give an integer from 1 up that int64 holds")
def beyond_int64(folder):
    return lambda: small(capacity=2**70), lambda said: small(capacity=2**10)


@case("gamma is 1.5; give a number from 0 to 1")
def a_gamma_above_1(folder):
    return lambda: small(gamma=1.5), lambda said: small(gamma=1.0)


@case("alpha is an integer of very many digits; give a finite number from 0 up")
def an_alpha_that_no_float_holds(folder):
    return lambda: small(alpha=10**5000), lambda said: small(alpha=0.6)


@case("capacity is an integer of very many digits; give an integer from 1 up")
def a_capacity_that_cannot_be_written(folder):
    return lambda: small(capacity=-(10**5000)), lambda said: small(capacity=40)


@case("eps is 0; give a number above 0")
def no_eps(folder):
    return lambda: small(eps=0), lambda said: small(eps=1e-9)


@case("alpha is 1e+300 and eps 1e-06, so that (1 + eps)**alpha, the weight of new rows, overflows; give less")
def an_alpha_too_large(folder):
    return lambda: small(alpha=1e300, eps=1e-6), lambda said: small(alpha=1e3, eps=1e-6)


@case("stack_padding is 'zeros'; give one of 'first', 'zero'")
def another_padding(folder):
    return lambda: small(stack_padding="zeros"), lambda said: small(stack_padding="zero")


@case("autoreset is None; give one of 'next_step', 'same_step', 'disabled'")
def no_autoreset(folder):
    return lambda: small(autoreset=None), lambda said: [
        small(autoreset=mode) for mode in re.findall(r"'(\w+)'", said)
    ]  # fmt: skip


@case("obs_shape is 3; give a tuple of lengths")
def a_number_for_a_shape(folder):
    return lambda: small(obs_shape=3), lambda said: small(obs_shape=(3,))


@case("obs_dtype is 'pixels'; give a boolean or numeric NumPy dtype")
def no_dtype(folder):
    return lambda: small(obs_dtype="pixels"), lambda said: small(obs_dtype=bool)


@case("action_dtype is object; give a boolean or numeric one")
def a_dtype_of_objects(folder):
    return lambda: small(action_dtype=object), lambda said: small(action_dtype=complex)


@case("give at most 62 axes, and lengths of which capacity = 40 take fewer than 2**63 bytes")
def a_shape_too_large(folder):
    return lambda: small(obs_shape=(2**30, 2**30)), lambda said: small(obs_shape=(1,) * 62)


@case("seed is -1; give an integer from 0 up, a sequence of them, a SeedSequence or None")
def a_bad_seed(folder):
    return lambda: small(seed=-1), lambda said: [
        small(seed=seed) for seed in (0, [0, 1], np.random.SeedSequence(0), None)
    ]  # fmt: skip


@case("store is 'disk'; give 'ram', 'lz4', 'mmap' or a callable that makes a FrameStore")
def no_store(folder):
    pytest.importorskip("lz4.block")
    return lambda: small(store="disk"), lambda said: [small(store=store) for store in ("ram", "lz4", RamStore)]


@case("threads is 0; give an integer from 1 up")
def no_thread(folder):
    return lambda: small(store=partial(RamStore, threads=0)), lambda said: small(store=partial(RamStore, threads=1))


@case("capacity is 4611686018427387, too much for memory", MemoryError)
def more_rows_than_memory(folder):
    return lambda: small(capacity=2**62 // 1000), lambda said: small(capacity=2**10)


@case("capacity is 4611686018427387904, too much for memory", MemoryError)
def more_leaves_than_memory(folder):
    return lambda: SumTree(2**62), lambda said: SumTree(2**10)


@case("needs the extra 'lz4': pip install ", ImportError)
def no_lz4(folder):
    def without():
        with pytest.MonkeyPatch.context() as patch:
            for name in ("lz4", "lz4.block"):
                patch.setitem(sys.modules, name, None)
            filled(store="lz4")

    def exists(said):
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        extra = re.search(r"pip install .*\[(\w+)\]", said)[1]
        assert any(needed.startswith("lz4") for needed in project["optional-dependencies"][extra])

    return without, exists if PROJECT.exists() else id  # a wheel has no such file


# --- rows ---------------------------------------------------------------------------------------------


def adding(replay=None, remedied=None, **changes):
    """Return a call of `add` that is refused, and one with other changes."""
    replay = filled() if replay is None else replay
    return lambda: replay.add(**step(**changes)), lambda said: replay.add(**step(**(remedied or {})))


@case("obs has shape (3, 3); expected (2, 3), one row per environment")
def rows_of_another_number(folder):
    return adding(obs=np.zeros((3, 3), np.uint8), remedied={"obs": np.zeros((2, 3), np.uint8)})


@case("obs is int64; expected uint8: convert it, or build the buffer with obs_dtype='int64'")
def frames_of_another_dtype(folder):
    obs = np.zeros((2, 3), np.int64)

    def remedied(said):
        small(obs_dtype=named(said, "obs_dtype")).add(**step(obs=obs))
        filled().add(**step(obs=obs.astype(np.uint8)))

    return lambda: filled().add(**step(obs=obs)), remedied


@case("final_obs is int64; expected uint8: convert it, or build the buffer with obs_dtype='int64'")
def final_frames_of_another_dtype(folder):
    frames, ends = np.zeros((2, 3), np.int64), {"autoreset": "same_step"}

    def remedied(said):
        other = small(obs_dtype=named(said, "obs_dtype"), **ends)
        other.add(**step(obs=frames, truncated=ENDS, final_obs=frames))
        small(**ends).add(**step(truncated=ENDS, final_obs=frames.astype(np.uint8)))

    return lambda: small(**ends).add(**step(truncated=ENDS, final_obs=frames)), remedied


def converted(name, given, dtype):
    """Return a call of `add` with an array that no buffer holds, and one with that array converted."""
    replay = filled()

    def remedied(said):
        assert said.endswith("convert it")  # and not: or build another buffer
        replay.add(**step(**{name: given.real.astype(dtype)}))

    return lambda: replay.add(**step(**{name: given})), remedied


@case("obs is object; expected uint8: convert it")
def frames_of_objects(folder):
    return converted("obs", np.zeros((2, 3), object), np.uint8)


@case("reward is object; expected float32: convert it")
def rewards_of_objects(folder):
    return converted("reward", np.array([1, 2], object), np.float32)


@case("reward is complex128; expected float32: convert it")
def complex_rewards(folder):
    return converted("reward", np.array([1, 2 + 0j]), np.float32)


@case("action is complex128; expected int64: convert it, or build the buffer with action_dtype='complex128'")
def complex_actions(folder):
    action = np.array([1, 2j])

    def remedied(said):
        small(action_dtype=named(said, "action_dtype")).add(**step(action=action))
        small().add(**step(action=action.real.astype(int)))

    return lambda: small().add(**step(action=action)), remedied


@case("action holds 300, which int8 cannot hold; build the buffer with action_dtype='int64'")
def an_action_too_large(folder):
    action = np.array([300, 0])
    return (
        lambda: small(action_dtype=np.int8).add(**step(action=action)),
        lambda said: small(action_dtype=named(said, "action_dtype")).add(**step(action=action)),
    )


@case("reward holds 1e+39, which float32 cannot hold; give numbers from -3.40282e+38 to 3.40282e+38")
def a_reward_too_large(folder):
    replay = filled()
    return (
        lambda: replay.add(**step(reward=[1e39, 0])),
        lambda said: replay.add(**step(reward=[last_number(said), -last_number(said)])),
    )


@case("reward holds nan; give finite numbers")
def a_reward_that_is_none(folder):
    return adding(reward=[np.nan, 0], remedied={"reward": [0.0, 0]})


@case("action is not an array")
def a_ragged_list(folder):
    return adding(action=[[1], [2, 3]], remedied={"action": [1, 2]})


@case("terminated is float64 (2,); expected bool (2,)")
def flags_that_are_floats(folder):
    return adding(terminated=np.zeros(2), remedied={"terminated": np.zeros(2, bool)})


@case("truncated is int64 and holds 2; expected bool (2,)")
def flags_beyond_1(folder):
    return adding(truncated=[0, 2], remedied={"truncated": np.array([0, 2]) != 0})


@case("env_id is float64 (2,); give integers of shape [n]")
def names_that_are_floats(folder):
    return adding(env_id=[0.0, 1.0], remedied={"env_id": [0, 1]})


@case("env_id holds 18446744073709551615; give integers of shape [n]")
def names_that_int64_does_not_hold(folder):
    return adding(env_id=np.array([0, 2**64 - 1], np.uint64), remedied={"env_id": np.array([0, 1], np.uint64)})


@case("env_id holds 5; give 0 to 1, or build the buffer with more num_envs")
def an_unknown_environment(folder):
    def remedied(said):
        small(num_envs=6, capacity=120).add(**step(env_id=[0, 5]))
        small().add(**step(env_id=[0, 1]))

    return lambda: small().add(**step(env_id=[0, 5])), remedied


@case("env_id names an environment twice; add its rows in separate calls")
def an_environment_twice(folder):
    replay, rows = filled(), step(env_id=[1, 1])
    each = [{name: value[i : i + 1] for name, value in rows.items()} for i in range(2)]
    return lambda: replay.add(**rows), lambda said: [replay.add(**row) for row in each]


@case("final_obs is given, but with autoreset='next_step' the next row carries it; leave it out")
def a_final_frame_twice(folder):
    return adding(truncated=ENDS, final_obs=step()["obs"], remedied={"truncated": ENDS})


@case("final_obs is an object array of shape (3,); expected (2,)")
def too_many_final_frames(folder):
    frame = np.zeros(3, np.uint8)
    return adding(
        small(autoreset="same_step"),
        truncated=ENDS,
        final_obs=[None, frame, None],
        remedied={"truncated": ENDS, "final_obs": [None, frame]},
    )


@case("final_obs is None in row 1, which was truncated; give the frame after the last action")
def a_truncated_row_without_its_final_frame(folder):
    return adding(
        small(autoreset="same_step"),
        truncated=ENDS,
        remedied={"truncated": ENDS, "final_obs": [None, np.zeros(3, np.uint8)]},
    )


@case("final_obs[1] is int64 (3,); expected uint8 (3,)")
def a_final_frame_of_another_dtype(folder):
    return adding(
        small(autoreset="same_step"),
        truncated=ENDS,
        final_obs=[None, [1, 2, 3]],
        remedied={"truncated": ENDS, "final_obs": [None, np.array([1, 2, 3], np.uint8)]},
    )


def ended(**last):
    replay = small(autoreset="same_step")
    replay.add(**step(terminated=np.ones(2, bool), **last))
    return replay


@case("give final_obs there, or first=True here")
def a_game_that_goes_on_without_a_frame(folder):
    replay = ended()

    def remedied(said):
        ended(final_obs=step()["obs"]).add(**step(first=NO))
        replay.add(**step(first=~NO))

    return lambda: replay.add(**step(first=NO)), remedied


# --- observations of several arrays, and fields of one's own -------------------------------------------

TWO = {"image": (3,), "state": (2,)}
OWN = {"mask": ((2,), bool)}
MASK = np.ones((2, 2), bool)


def two(t=12):
    return {"image": np.full((2, 3), t, np.uint8), "state": np.full((2, 2), t, np.uint8)}


def building(remedied, **changes):
    """Return the call that builds a buffer with settings that are refused, and one that builds it with others."""
    return lambda: small(**changes), lambda said: small(**changes | remedied)


def adding_to(remedied, settings, **changes):
    """Return the call that adds rows that are refused to a buffer of these settings, and one that adds others."""
    return lambda: small(**settings).add(**step(**changes)), lambda said: small(**settings).add(
        **step(**changes | remedied)
    )


@case("obs_shape is empty; give the shape of at least one array")
def an_observation_of_nothing(folder):
    return building({"obs_shape": TWO}, obs_shape={})


@case("obs_shape['in'] has the key 1; give strings as keys")
def an_array_with_a_number_for_a_name(folder):
    return building({"obs_shape": {"in": {"1": (3,)}}}, obs_shape={"in": {1: (3,)}})


@case("stack is a dictionary of 'image'; give a dictionary of 'image', 'state', as obs_shape is, or one for all")
def a_stack_for_one_of_two(folder):
    def remedied(said):
        small(obs_shape=TWO, stack={"image": 2, "state": 1})
        small(obs_shape=TWO, stack=2)

    return lambda: small(obs_shape=TWO, stack={"image": 2}), remedied


@case("obs_dtype is a tuple of 1; give a tuple of 2, as obs_shape is, or one for all")
def a_dtype_for_one_of_two(folder):
    shapes = {"obs_shape": ((3,), ())}
    return (
        lambda: small(**shapes, obs_dtype=("u1",)),
        lambda said: [small(**shapes, obs_dtype=dtype) for dtype in (("u1", "f4"), "u1")],
    )


@case("obs is a dictionary of 'image'; give a dictionary of 'image', 'state'")
def one_of_two_arrays(folder):
    return adding_to({"obs": two()}, {"obs_shape": TWO}, obs={"image": two()["image"]})


@case("obs is of type ndarray; give a tuple of 2")
def an_array_in_place_of_a_tuple(folder):
    tuples = {"obs_shape": ((3,), (2,))}
    return adding_to({"obs": tuple(two().values())}, tuples, obs=np.zeros((2, 3), np.uint8))


@case("extra is ('mask', (2,), 'bool'); give a dictionary of fields, each a name with (shape, dtype)")
def fields_that_are_no_dictionary(folder):
    return building({"extra": OWN}, extra=("mask", (2,), "bool"))


@case("extra has the key 3; give strings as names of fields")
def a_field_with_a_number_for_a_name(folder):
    return building({"extra": {"3": ((), bool)}}, extra={3: ((), bool)})


@case("extra['mask'] is <class 'bool'>; give (shape, dtype), such as ((), np.float32)")
def a_field_without_a_shape(folder):
    return building({"extra": {"mask": ((), np.float32)}}, extra={"mask": bool})


@case("next_extra is 'mask'; give a tuple of names of fields in extra")
def a_name_in_place_of_a_tuple(folder):
    return building({"next_extra": ("mask",)}, extra=OWN, next_extra="mask")


@case("next_extra names 'other', which is no field in extra; give names of ['mask']")
def a_next_field_that_is_none(folder):
    return building({"next_extra": ["mask"]}, extra=OWN, next_extra=("other",))


@case("extra is a dictionary of 'mask'; leave it out, or build the buffer with extra=")
def a_field_that_the_buffer_lacks(folder):
    def remedied(said):
        small().add(**step())
        small(extra=OWN).add(**step(extra={"mask": MASK}))

    return lambda: small().add(**step(extra={"mask": MASK})), remedied


@case("extra['mask'] is float64; expected bool: convert it, or build the buffer with extra['mask'] of dtype 'float64'")
def a_field_of_another_dtype(folder):
    def remedied(said):
        small(extra=OWN).add(**step(extra={"mask": MASK}))
        small(extra={"mask": ((2,), "float64")}).add(**step(extra={"mask": MASK * 1.0}))

    return lambda: small(extra=OWN).add(**step(extra={"mask": MASK * 1.0})), remedied


@case("batches hold no field at the next state; leave it out, or build the buffer with next_extra=")
def a_final_field_that_no_batch_holds(folder):
    rows = step(extra={"mask": MASK})
    settings = {"extra": OWN, "autoreset": "same_step"}

    def remedied(said):
        small(**settings).add(**rows)
        small(**settings, next_extra=("mask",)).add(**rows, final_extra={"mask": MASK})

    return lambda: small(**settings).add(**rows, final_extra={"mask": MASK}), remedied


@case("final_extra['mask'] is None in row 1, which was truncated; give the value after the last action")
def a_truncated_row_without_its_final_field(folder):
    rows = {"extra": {"mask": MASK}, "truncated": ENDS, "final_obs": np.zeros((2, 3), np.uint8)}
    settings = {"extra": OWN, "next_extra": ("mask",), "autoreset": "same_step"}
    return adding_to({"final_extra": [None, {"mask": MASK[1]}]}, settings, **rows)


@case("final_obs['image'][1] is object (); expected uint8 (3,)")
def a_final_observation_that_is_nested_in_another_way(folder):
    settings = {"obs_shape": TWO, "autoreset": "same_step"}
    good = {name: array[1] for name, array in two().items()}
    rows = {"obs": two(), "truncated": ENDS, "final_obs": [None, good["image"]]}
    return adding_to({"final_obs": [None, good]}, settings, **rows)


@case("action_space is many, of several arrays; give the space of one of them, and keep the others as extra=")
def a_space_of_several_actions(folder):
    one, many = Space((), np.int64), Space((), np.int64)
    many.spaces = {"move": one, "turn": one}

    def remedied(said):
        sizes = {"capacity": 40, "num_envs": 2}
        replay = ReplayBuffer.for_spaces(one, many.spaces["move"], extra={"turn": ((), np.int64)}, **sizes)
        replay.add([1, 2], [0, 0], [0, 0], NO, NO, extra={"turn": [1, 1]})

    return lambda: ReplayBuffer.for_spaces(one, many, capacity=40, num_envs=2), remedied


@case("observation_space['text'] is many, which holds no arrays of one shape and numeric dtype; give one that does")
def a_space_of_texts(folder):
    one, many = Space((), np.int64), Space(None, None)
    many.spaces = {"text": Space(None, str)}
    return (
        lambda: ReplayBuffer.for_spaces(many, one, capacity=40, num_envs=2),
        lambda said: ReplayBuffer.for_spaces(one, one, capacity=40, num_envs=2),
    )


class Space:
    """Has what is looked at of Gymnasium's."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype

    def __repr__(self):
        return "many"


# --- many steps ---------------------------------------------------------------------------------------


def steps(count=3, **changes):
    """What `extend` gets: as `step`, with one more axis."""
    return {name: np.stack([value] * count) for name, value in step().items()} | changes


FINALS = np.zeros((3, 2, 3), np.uint8)


def extending(remedied, **changes):
    settings = {"autoreset": "same_step"}
    return (
        lambda: small(**settings).extend(**steps(**changes)),
        lambda said: small(**settings).extend(**steps(**changes | remedied)),
    )


@case("terminated is bool (2,); expected bool (T, n), T vector steps")
def one_step_in_place_of_many(folder):
    return extending({"terminated": np.stack([NO] * 3)}, terminated=NO)


@case("final_obs has 2 entries; expected 3, one for each step")
def final_frames_of_some_steps(folder):
    return extending({"final_obs": list(FINALS)}, final_obs=list(FINALS[:2]))


@case("final_obs has shape (2, 2, 3); expected (3, 2, 3)")
def too_few_final_frames(folder):
    return extending({"final_obs": FINALS}, final_obs=FINALS[:2])


@case("final_obs is None in row 1 of step 2, which was truncated; give the frame after the last action")
def a_truncated_row_of_many_without_its_final_frame(folder):
    truncated = np.stack([NO, NO, ENDS])
    return extending({"final_obs": [None, None, FINALS[2]]}, truncated=truncated)


FIELDS = {"extra": OWN, "next_extra": ("mask",), "autoreset": "same_step"}


@case("final_extra is a dictionary of 'mask'; give a list with one entry for each step")
def final_frames_by_step_and_fields_in_one(folder):
    rows = steps(extra={"mask": np.stack([MASK] * 3)}, final_obs=[None] * 3)
    mask = {"mask": np.ones((3, 2, 2), bool)}
    return (
        lambda: small(**FIELDS).extend(**rows, final_extra=mask),
        lambda said: small(**FIELDS).extend(**rows, final_extra=[None, {"mask": MASK}, None]),
    )


@case("final_extra has 2 entries; give one for each of 3 steps")
def final_fields_of_some_steps(folder):
    rows = steps(extra={"mask": np.stack([MASK] * 3)}, final_obs=[None] * 3)
    return (
        lambda: small(**FIELDS).extend(**rows, final_extra=[None] * 2),
        lambda said: small(**FIELDS).extend(**rows, final_extra=[None] * 3),
    )


# --- draws --------------------------------------------------------------------------------------------


@case("no row can be drawn yet: 0 rows held; add more before the first sample")
def a_draw_from_nothing(folder):
    replay = small()

    def remedied(said):
        for t in range(3):
            replay.add(**step(t))
        replay.sample(4)

    return lambda: replay.sample(4), remedied


@case("batch_size is 2.5; give an integer from 1 up")
def half_a_row(folder):
    return lambda: filled().sample(2.5), lambda said: filled().sample(1)


@case("beta is 1.5; give a number from 0 to 1")
def a_beta_above_1(folder):
    return lambda: filled().sample(4, beta=1.5), lambda said: [filled().sample(4, beta=beta) for beta in (0, 1)]


@case("batch_size is 1125899906842624, too much for memory", MemoryError)
def a_batch_larger_than_memory(folder):
    return lambda: filled().sample(2**50), lambda said: filled().sample(2**10)


def own(size=4, **changes):
    drawn = filled().sample(size)
    return Batch(**{name: getattr(drawn, name).copy() for name in Batch.__slots__} | changes)


@case("out.weight is float64 (4,); give a NumPy array, float32 (4,)")
def weights_of_another_dtype(folder):
    return lambda: filled().sample(4, out=own(weight=np.empty(4))), lambda said: filled().sample(4, out=own())


@case("out.index is read-only, misaligned or not contiguous; give a writable C-contiguous array")
def arrays_with_gaps(folder):
    index = np.empty(8, np.int64)[::2]
    return (
        lambda: filled().sample(4, out=own(index=index)),
        lambda said: filled().sample(4, out=own(index=np.ascontiguousarray(index))),
    )


@case("two arrays of out share their memory; give each field a separate array")
def arrays_that_overlap(folder):
    one = np.empty(4, np.float32)
    return (
        lambda: filled().sample(4, out=own(reward=one, weight=one)),
        lambda said: filled().sample(4, out=own(reward=one, weight=one.copy())),
    )


def prefetched():
    replay = filled()
    replay.prefetch(4, beta=0.5)
    return replay


def as_said(replay, said):
    """Call ``sample`` as a message says."""
    eval(re.search(r"call (sample\(.*\)) before", said)[1], {"sample": replay.sample})


@case("out is given, but the batch that was prefetched has arrays of its own; call sample without out")
def arrays_for_a_prefetched_batch(folder):
    replay = prefetched()
    return lambda: replay.sample(4, beta=0.5, out=own()), lambda said: replay.sample(4, beta=0.5)


@case("sample got batch_size=5, beta=0.5, but batch_size=4, beta=0.5 was prefetched; take that batch first")
def another_batch_than_the_prefetched_one(folder):
    replay = prefetched()
    return lambda: replay.sample(5, beta=0.5), lambda said: [replay.sample(4, beta=0.5), replay.sample(5, beta=0.5)]


def taken_first(call, folder):
    replay = prefetched()

    def remedied(said):
        as_said(replay, said)
        call(replay, folder)

    return lambda: call(replay, folder), remedied


@case("has not been taken; call sample(batch_size=4, beta=0.5) before you prefetch again")
def a_second_prefetch(folder):
    return taken_first(lambda replay, _: replay.prefetch(4), folder)


@case("call sample(batch_size=4, beta=0.5) before you save")
def a_save_with_a_batch_in_flight(folder):
    return taken_first(lambda replay, folder: replay.save(folder / "replay"), folder)


@case("call sample(batch_size=4, beta=0.5) before you reseed")
def a_new_seed_with_a_batch_in_flight(folder):
    return taken_first(lambda replay, _: replay.reseed(3), folder)


# --- priorities ---------------------------------------------------------------------------------------


def prioritized(priority, replay=None, index=None):
    replay = filled() if replay is None else replay
    index = replay.sample(2).index if index is None else index
    return replay.update_priorities(index, priority)


@case("priority holds -1.0; give finite numbers from 0 up")
def a_negative_priority(folder):
    return lambda: prioritized([-1.0, 0.0]), lambda said: prioritized([0.0, 0.0])


@case("priority is object (2,); give one finite number per index")
def priorities_of_objects(folder):
    return lambda: prioritized([None, 1.0]), lambda said: prioritized([2.0, 1.0])


@case("priority holds 1e+300, whose weight (priority + eps)**alpha overflows with alpha=2.0; give at most 1e+152, or")
def a_priority_whose_power_overflows(folder):
    most = re.compile(r"at most (\S+),")

    def remedied(said):
        prioritized([float(most.search(said)[1]), 0.0], filled(alpha=2.0))
        prioritized([1e300, 0.0], filled(alpha=1.0))

    return lambda: prioritized([1e300, 0.0], filled(alpha=2.0)), remedied


@pytest.mark.parametrize(("alpha", "eps"), [(1.0, 1e300), (1.0, 1e-6), (1.5, 1e9), (60.0, 1e-6), (4e4, 1e-6)])
def test_the_largest_priority_that_a_message_names_is_taken(alpha, eps):
    replay = filled(alpha=alpha, eps=eps)
    index = replay.sample(2).index
    with pytest.raises(ValueError, match="overflows with alpha") as refused:
        replay.update_priorities(index, [1.79e308, 1.0])
    most = float(re.search(r"at most (\S+),", str(refused.value))[1])
    replay.update_priorities(index, [most, 0.0])
    with pytest.raises(ValueError, match="overflows with alpha"):
        replay.update_priorities(index, [most * 1000, 1.0])


@case("priority has shape (1,); give one per index, shape (2,)")
def too_few_priorities(folder):
    return lambda: prioritized([1.0]), lambda said: prioritized([1.0, 2.0])


@case("index holds 9999, which names no row; pass a batch's own index")
def a_name_of_no_row(folder):
    return lambda: filled().age([9999]), lambda said: (replay := filled()).age(replay.sample(4).index)


@case("index is float64 (1,); give a batch's own index, int64 [B]")
def names_of_rows_that_are_floats(folder):
    return lambda: filled().weights([0.0]), lambda said: (replay := filled()).weights(replay.sample(4).index)


# --- hindsight ----------------------------------------------------------------------------------------


def nearness(achieved, desired):
    return -np.abs(achieved - desired)[:, 0]


def goal_seeking(**changes):
    """Environments whose observations have goals; with a draw of one new goal for each row."""
    goals = {"achieved_goal": (1,), "desired_goal": (1,)}
    replay = small(**{"obs_shape": goals, "obs_dtype": np.float64, "stack": 1} | changes)
    shapes, dtypes = replay.settings["obs_shape"], replay.settings["obs_dtype"]
    for t in range(12):
        replay.add({key: np.full((2, *shapes[key]), t).astype(dtypes[key]) for key in shapes}, [t, t], [0, 0], NO, NO)
    return replay, lambda **how: replay.sample_hindsight(4, Hindsight(**{"reward": nearness, "share": 1.0} | how))


def returning(value):
    """A function of goals that returns this for each of them."""
    return lambda achieved, desired: np.full(len(achieved), value)


@case("strategy is 'past'; give one of 'future', 'final', 'episode'")
def a_strategy_that_is_none(folder):
    return lambda: Hindsight(nearness, "past"), lambda said: [
        Hindsight(nearness, strategy) for strategy in re.findall(r"'(\w+)'", said)[1:]
    ]


@case("share is 1.5; give a number from 0 to 1")
def a_share_of_more_than_all(folder):
    return lambda: Hindsight(nearness, share=1.5), lambda said: Hindsight(nearness, share=last_number(said))


@case("reward is 1.0; give a function of achieved and desired goals")
def a_reward_that_is_a_number(folder):
    return lambda: Hindsight(1.0), lambda said: Hindsight(returning(1.0))


@case("achieved and desired are both 'goal'; give two arrays of the observation")
def one_array_for_both_goals(folder):
    return lambda: Hindsight(nearness, achieved="goal", desired="goal"), lambda said: Hindsight(
        nearness, desired="goal"
    )


@case("; give a fastrl.replay.Hindsight")
def a_strategy_in_place_of_all_settings(folder):
    replay, draw = goal_seeking()
    return lambda: replay.sample_hindsight(4, "future"), lambda said: draw(strategy="future")


@case("desired is 'goal', which is no array of the observations; give one of 'achieved_goal', 'desired_goal', or build")
def a_goal_that_is_not_observed(folder):
    _, draw = goal_seeking()
    return lambda: draw(desired="goal"), lambda said: draw(desired=re.findall(r"'(\w+)'", said)[-1])


@case(
    "achieved is 'achieved_goal', which is no array of the observations; build the buffer with a dictionary of shapes"
)
def goals_of_a_single_array(folder):
    return (
        lambda: filled().sample_hindsight(4, Hindsight(nearness)),
        lambda said: goal_seeking()[1](),
    )


@case("so that one cannot stand for the other; build the buffer with obs_shape and obs_dtype in which they are alike")
def goals_of_unequal_shapes(folder):
    _, draw = goal_seeking(obs_shape={"achieved_goal": (2,), "desired_goal": (1,)})
    return draw, lambda said: goal_seeking(obs_shape={"achieved_goal": (2,), "desired_goal": (2,)})[1]()


@case("makes no NumPy arrays, into which goals are written; build the buffer with store='ram' for it")
def goals_in_memory_that_is_not_the_hosts(folder):
    class Elsewhere(RamStore):
        def empty(self, shape):
            return None

    _, draw = goal_seeking(store={"achieved_goal": "ram", "desired_goal": Elsewhere})
    return draw, lambda said: goal_seeking(store={"achieved_goal": Elsewhere, "desired_goal": named(said, "store")})


@case("reward or terminated added rows to the buffer that calls it; add them before or after the draw", RuntimeError)
def a_reward_that_adds_rows(folder):
    replay, draw = goal_seeking()

    def adds(achieved, desired):
        replay.add({key: np.zeros((2, 1)) for key in ("achieved_goal", "desired_goal")}, [0, 0], [0, 0], NO, NO)
        return nearness(achieved, desired)

    return lambda: draw(reward=adds), lambda said: [adds(np.zeros((1, 1)), np.zeros((1, 1))), draw()]


@case("reward returned shape (4, 1); return one number for each goal, (4,)")
def rewards_of_two_axes(folder):
    _, draw = goal_seeking()
    return lambda: draw(reward=lambda a, d: a - d), lambda said: draw(reward=lambda a, d: (a - d)[:, 0])


@case("reward returned inf; return finite numbers that float32 holds")
def a_reward_without_end(folder):
    _, draw = goal_seeking()
    return lambda: draw(reward=returning(np.inf)), lambda said: draw(reward=returning(3e38))


@case("terminated returned float64 (4,); return one bool for each goal, bool (4,)")
def an_end_that_is_a_number(folder):
    _, draw = goal_seeking()
    return lambda: draw(terminated=returning(1.0)), lambda said: draw(terminated=returning(True))


# --- SumTree ------------------------------------------------------------------------------------------


def tree(*weights):
    found = SumTree(20)
    found.set(np.arange(len(weights)), weights)
    return found


@case("index holds 20; give 0 to 19")
def an_index_beyond_the_tree(folder):
    return lambda: tree().get([20]), lambda said: tree().get([0, int(last_number(said))])


@case("weight has shape (2,); give one per index, shape (1,)")
def too_many_weights(folder):
    return lambda: tree().set([0], [1.0, 2.0]), lambda said: tree().set([0], [1.0])


@case("weight holds 1e+308; give weights from 0 to ")
def a_weight_whose_sum_could_overflow(folder):
    return lambda: tree().set([0], [1e308]), lambda said: tree().set([0, 1], [0.0, last_number(said)])


@case("target has shape (1, 1); give real numbers of shape [B]")
def targets_of_two_axes(folder):
    return lambda: tree(1.0).find([[0.5]]), lambda said: tree(1.0).find([0.5])


@case("target holds 4.0; give targets in [0, 3.0]")
def a_target_beyond_the_sum(folder):
    return lambda: tree(1.0, 2.0).find([4.0]), lambda said: tree(1.0, 2.0).find([0.0, 3.0])


@case("all weights are 0, so no index can be drawn; set some weights first")
def a_target_in_an_empty_tree(folder):
    return lambda: tree().find([0.0]), lambda said: tree(1.0).find([0.0])


@case("all weights are 0, so no index can be drawn; set some weights first")
def a_draw_from_an_empty_tree(folder):
    rng = np.random.default_rng(0)
    return lambda: tree().sample(3, rng), lambda said: tree(1.0).sample(3, rng)


# --- saves --------------------------------------------------------------------------------------------


@case("a save is in progress; write or close it before you begin another")
def a_second_save(folder):
    replay = filled()
    saves = [replay.begin_save(folder / "one")]

    def remedied(said):
        saves[0].close()
        saves.append(replay.begin_save(folder / "two"))
        saves[1].write()
        replay.begin_save(folder / "three").close()

    return lambda: replay.begin_save(folder / "two"), remedied


@case("this save was given up; begin another, into another folder", RuntimeError)
def a_save_that_was_closed(folder):
    replay = filled()
    save = replay.begin_save(folder / "one")
    save.close()
    return save.write, lambda said: replay.begin_save(folder / "two").write()


@case("write of this save was called before; begin another, into another folder", RuntimeError)
def a_save_written_twice(folder):
    replay = filled()
    save = replay.begin_save(folder / "one")
    save.write()
    return save.write, lambda said: replay.begin_save(folder / "two").write()


@case("write of this save was called before", RuntimeError)
def a_save_that_is_being_written(folder):
    replay = filled()
    save = replay.begin_save(folder / "one")
    save._begun = True  # by another thread
    return save.write, lambda said: (save.close(), replay.begin_save(folder / "two").write())


@case("call write() or close() of what begin_save returned", RuntimeError)
def a_row_that_waits_for_a_save_that_nothing_writes(folder):
    replay = filled(20)
    save = replay.begin_save(folder / "one")

    def remedied(said):
        save.write()
        replay.add(**step(20))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "active_count", lambda: 1)  # other tests may leave threads
        with pytest.raises(RuntimeError) as error:
            replay.add(**step(20))

    def again():
        raise error.value

    return again, remedied


@case(
    "is a folder without an index: it is no saved replay, or one that was not written to its end; write() of what begin"
)
def a_folder_of_a_save_that_was_not_written(folder):
    save = filled().begin_save(folder / "one")

    def remedied(said):
        save.write()
        PrioritizedReplayBuffer.load(folder / "one")

    return lambda: PrioritizedReplayBuffer.load(folder / "one"), remedied


@case("a save cannot be copied or pickled; begin another, of a copy of the buffer", TypeError)
def a_copied_save(folder):
    replay = filled()
    save = replay.begin_save(folder / "one")
    return lambda: copy.copy(save), lambda said: copy.copy(replay).begin_save(folder / "two").write()


@case("expected kind 'uniform' in format 1, 2 or 3: load it with the class and version that saved it")
def a_replay_of_another_class(folder):
    filled().save(folder / "replay")
    return (
        lambda: ReplayBuffer.load(folder / "replay"),
        lambda said: PrioritizedReplayBuffer.load(folder / "replay"),
    )


def damaged(damage, folder, earlier="earlier"):
    filled().save(folder / earlier)
    filled().save(folder / "replay")
    damage(folder / "replay")
    return (
        lambda: PrioritizedReplayBuffer.load(folder / "replay"),
        lambda said: PrioritizedReplayBuffer.load(folder / earlier),
    )


@case("is not a saved replay, or is damaged (File is not a zip file); use an earlier one")
def a_file_of_something_else(folder):
    return damaged(lambda path: path.write_text("something else"), folder)


@case("it ends in the middle of the frames")
def a_file_without_its_last_frames(folder):
    def shorten(path):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content[:-1] if name == "frames" else content)

    return damaged(shorten, folder)


@case("expected int64 (2,)")
def a_file_with_a_cursor_of_another_shape(folder):
    def shorter(header, arrays):
        arrays["ring.pending"] = arrays["ring.pending"][:1]

    return damaged(lambda path: altered(path, shorter), folder)


@case("is encrypted")
def a_file_that_a_flipped_bit_marks_as_encrypted(folder):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[content.index(b"PK\x01\x02") + 8] |= 1  # the flags of the first member in the directory
        content[content.index(b"PK\x03\x04") + 6] |= 1
        path.write_bytes(content)

    return damaged(flip, folder)


# --- folders ------------------------------------------------------------------------------------------


def living(folder, **changes):
    return small(store="mmap", folder=folder / "replay", **changes)


@case("a copy or pickle would share them; save the buffer, and load the save where a copy is needed", TypeError)
def a_copy_of_files(folder):
    buffer = living(folder)
    return lambda: copy.copy(buffer), lambda said: [
        buffer.save(folder / "saved"), PrioritizedReplayBuffer.load(folder / "saved")
    ]  # fmt: skip


@case("with other settings: capacity is 60, not 40, alpha is 0.5, not 0.6; give capacity=40, alpha=0.6, or another")
def a_folder_of_other_settings(folder):
    living(folder).close()
    return lambda: living(folder, capacity=60, alpha=0.5), lambda said: living(
        folder, **{name: named(said.partition("give")[2].replace(",", " "), name) for name in ("capacity", "alpha")}
    )


@case("which holds no replay, but 'notes'; give a new or an empty one")
def a_folder_of_other_files(folder):
    (folder / "replay").mkdir()
    (folder / "replay" / "notes").touch()
    return lambda: living(folder), lambda said: living(folder / "new")


@case("which is no folder; give a new or an empty one")
def a_folder_that_is_a_file(folder):
    (folder / "replay").touch()
    return lambda: living(folder), lambda said: living(folder / "new")


@case("which holds no replay; give it to the class, with store='mmap', to make one")
def nothing_to_take_up(folder):
    return lambda: PrioritizedReplayBuffer.from_folder(folder / "replay"), lambda said: living(folder)


@case("which holds a replay; give a new or an empty one")
def a_save_over_a_buffer(folder):
    living(folder).close()
    filled().save(folder / "saved")
    load = partial(PrioritizedReplayBuffer.load, folder / "saved", "mmap")
    return lambda: load(folder=folder / "replay"), lambda said: load(folder=folder / "new")


@case("uses; close its buffer or end the process, or give another folder", BlockingIOError)
def a_folder_in_use(folder):
    buffer = living(folder)
    return lambda: [buffer, living(folder)], lambda said: [living(folder / "another"), buffer.close(), living(folder)]


@case("needs file locks (flock), which this system lacks; use store='ram'", OSError)
def a_system_without_locks(folder):
    def refused():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "fcntl", None)
            living(folder)

    return refused, lambda said: small(store=named(said.partition("use ")[2], "store"))


def on_a_disk(total, free):
    """Return a function that makes a buffer of 40 rows of 1 MiB in a folder on a disk of this size, in MiB."""
    usage = namedtuple("usage", "total used free")

    def make(folder, **changes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: usage(total << 20, (total - free) << 20, free << 20))
            living(folder, **{"obs_shape": (1 << 20,)} | changes)

    return make


@case("GiB free, but capacity = 40 needs 0.04; give less capacity, or a folder on another disk", OSError)
def more_frames_than_the_disk_holds(folder):
    make = on_a_disk(100, 30)
    return partial(make, folder), lambda said: make(folder, capacity=20)


@case("GiB free, but capacity = 40 needs 0.04; give a folder on another disk", OSError)
def a_disk_that_is_full(folder):
    return partial(on_a_disk(100, 2), folder), lambda said: on_a_disk(100, 99)(folder)


@case("is a link to 'gone', where there is no folder; make one there, or give another folder")
def a_link_that_leads_nowhere(folder):
    (folder / "replay").symlink_to("gone")
    return lambda: living(folder), lambda said: [living(folder / "another"), (folder / "gone").mkdir(), living(folder)]


@case("which is no folder; give another folder")
def a_folder_below_a_file(folder):
    (folder / "notes").touch()
    return lambda: living(folder / "notes"), lambda said: living(folder)


@case("which is no path (embedded null byte); give another name")
def a_folder_with_a_nul_in_its_name(folder):
    return lambda: living(folder / "a\0b"), lambda said: living(folder / "ab")


@case("a name too long for its disk; give a shorter one")
def a_folder_with_a_long_name(folder):
    return lambda: living(folder / "new" / ("n" * 300)), lambda said: living(folder / "new" / ("n" * 200))


@case("folder is '/proc/replay', and /proc belongs to the system and is on no disk; give a folder on a disk", OSError)
def a_place_that_is_on_no_disk(folder):
    return partial(living, Path("/proc")), lambda said: living(folder)


def kept_elsewhere(name, damage, folder):
    """Damage a file of a buffer, and put back what was there."""
    living(folder).close()
    path = folder / "replay" / name
    content = path.read_bytes()
    damage(path)
    return lambda: living(folder), lambda said: [living(folder / "another"), path.write_bytes(content), living(folder)]


@case("state is missing; put back the file that was there, or give another folder", FileNotFoundError)
def a_state_that_is_missing(folder):
    return kept_elsewhere("state", Path.unlink, folder)


@case("is not a saved replay, or is damaged (File is not a zip file); use an earlier one, or give another folder")
def a_state_that_is_damaged(folder):
    return kept_elsewhere("state", lambda path: path.write_text("something else"), folder)


@case("reserved.json is damaged (")
def a_note_that_is_damaged(folder):
    return kept_elsewhere("reserved.json", lambda path: path.write_text("something else"), folder)


@case("reserved.json fails (No such file or directory); make it whole", FileNotFoundError)
def a_note_that_is_missing(folder):
    return kept_elsewhere("reserved.json", Path.unlink, folder)


@case("frames-0 has 60 bytes instead of 120; put back the file that was there", OSError)
def frames_that_are_cut(folder):
    return kept_elsewhere("frames-0", lambda path: path.write_bytes(bytes(60)), folder)


def moved(folder):
    buffer = living(folder)
    (folder / "replay").rename(folder / "elsewhere")
    return buffer, lambda: (folder / "elsewhere").rename(folder / "replay")


@case("frames-0 fails (", FileNotFoundError)
def a_flush_to_a_folder_that_moved(folder):
    buffer, _ = moved(folder)
    (folder / "replay").mkdir()
    (folder / "replay" / "frames-0").touch()
    return buffer.flush, lambda said: living(folder / "another")


@case("and the system does not say which frames are on the disk; save the buffer to another place", OSError)
def a_flush_after_one_that_failed(folder):
    buffer, put_back = moved(folder)
    with pytest.raises(FileNotFoundError):
        buffer.flush()
    put_back()
    return buffer.flush, lambda said: buffer.save(folder / "saved")


@case("reserved.json.partial fails (No such file or directory); make it whole", FileNotFoundError)
def a_row_in_a_folder_that_moved(folder):
    buffer, put_back = moved(folder)
    return lambda: buffer.add(**step()), lambda said: [put_back(), buffer.add(**step())]


# --- all of them --------------------------------------------------------------------------------------


def places(error):
    """Return each file and line that an error came through, and those of the errors that it replaced."""
    found = set()
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            found.add((Path(trace.tb_frame.f_code.co_filename).name, trace.tb_lineno))
            trace = trace.tb_next
        error = error.__cause__
    return found


@pytest.mark.parametrize(("function", "words", "error"), [pytest.param(*each, id=each[0].__name__) for each in CASES])
def test_the_remedy_that_a_message_names_works(function, words, error, tmp_path):
    refused, remedied = function(tmp_path)
    with pytest.raises(error) as caught:
        refused()
    said = str(caught.value)
    assert words in said
    assert set(re.findall(r"\b\w+(?==)|\b\w+_dtype\b", said)) <= arguments()
    remedied(said)


def arguments():
    """Return the names of all arguments of buffers and their methods."""
    calls = [getattr(PrioritizedReplayBuffer, name) for name in ("__init__", "sample", "add", "extend")]
    return {"self"}.union(*(inspect.signature(call).parameters for call in calls), Settings.__annotations__)


def raised(path):
    """Yield the function or class, and the first and last line, of each ``raise`` or `check_state` with a message."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tops = [top for top in tree.body if isinstance(top, ast.FunctionDef | ast.ClassDef)]
    outer = {inner: top.name for top in tops for inner in ast.walk(top)}
    for node in ast.walk(tree):
        raises = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        checks = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check_state"
        if raises or checks:
            yield outer[node], node.lineno, node.end_lineno


def test_every_message_of_the_room_has_a_case(tmp_path):
    said = set()
    for i, (function, _, error) in enumerate(CASES):
        (folder := tmp_path / str(i)).mkdir()
        with pytest.raises(error) as caught:
            function(folder)[0]()
        said |= places(caught.value)
    for path in [*ROOM.rglob("*.py"), CHECKS]:
        for name, first, last in raised(path):
            if name not in ELSEWHERE.get(path.name, ()) and name != "assert_that":
                assert any((path.name, line) in said for line in range(first, last + 1)), f"{path}:{first}"
