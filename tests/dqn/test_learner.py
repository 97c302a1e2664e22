"""The learner: one update, its priorities, the target's clock, metrics, state and compilation."""

import io
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch

from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn import learner as learner_module
from fastrl.dqn.learner import Learner

CPU = torch.device("cpu")
OBS = (1, 10, 5)
IMAGE = (2, 84, 84)
ACTIONS = 3
B = 8
TINY = DQNConfig(
    game="catch", trunk="vector", hidden=16, stack=1, batch_size=B, num_envs=4, compile=False,
    precision="float32", learning_rate=1e-2, target_period_updates=5, torch_threads=1,
)  # fmt: skip


class Batch(NamedTuple):
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    discount: np.ndarray
    weight: np.ndarray
    index: np.ndarray


def make_batch(seed: int = 0, obs_shape: tuple[int, ...] = OBS, dtype: str = "float32") -> Batch:
    rng = np.random.default_rng(seed)
    obs = rng.integers(0, 256 if dtype == "uint8" else 2, (2, B, *obs_shape)).astype(dtype)
    return Batch(
        obs[0],
        rng.integers(0, ACTIONS, B),
        rng.normal(size=B).astype(np.float32),
        obs[1],
        rng.choice(np.float32([0, 0.97]), B),
        rng.uniform(0.2, 1, B).astype(np.float32),
        rng.integers(0, 1000, B),
    )


def make(config: DQNConfig = TINY, seed: int = 1, delayed: bool | None = None) -> Learner:
    return Learner(config, OBS, np.float32, ACTIONS, CPU, seed, delayed=delayed)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.online.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 1e-2), ("rmsprop", 3e-4)])
@pytest.mark.parametrize("dueling", [True, False])
def test_it_overfits_one_batch(optimizer, rate, dueling):
    config = TINY.replace(optimizer=optimizer, learning_rate=rate, dueling=dueling, target_period_updates=10_000)
    learner = make(config)
    batch = make_batch()
    first = learner.learn(batch)[1].mean()
    for _ in range(600):
        index, abs_td = learner.learn(batch)
    assert abs_td.mean() < 0.02 * first
    assert index.dtype == np.int64
    assert abs_td.dtype == np.float32
    np.testing.assert_array_equal(index, batch.index)


def test_with_tau_the_target_network_moves_a_share_of_the_way_after_every_update():
    learner = make(TINY.replace(target_tau=0.25))
    for seed in range(TINY.target_period_updates + 1):  # no copy comes between
        before = {name: t.clone() for name, t in learner.target.state_dict().items()}
        learner.learn(make_batch(seed))
        online, target = learner.online.state_dict(), learner.target.state_dict()
        for name, old in before.items():
            torch.testing.assert_close(target[name], 0.75 * old + 0.25 * online[name], rtol=1e-5, atol=1e-7)
            assert not torch.equal(online[name], old)
    other = make(TINY.replace(target_tau=0.25), seed=9)
    other.load_state(learner.state())
    np.testing.assert_array_equal(learner.learn(make_batch(7))[1], other.learn(make_batch(7))[1])
    assert same(learner.target.state_dict(), other.target.state_dict())


def test_a_soft_target_goes_its_share_of_the_way_by_numbers_made_by_hand():
    learner = make(TINY.replace(target_tau=0.25))
    learner.set_learning_rate(1e-30)  # 1 stays 1
    with torch.no_grad():
        for online, target in zip(learner.online.parameters(), learner.target.parameters(), strict=True):
            online.fill_(1)
            target.fill_(0)
    for update, expected in enumerate([0.25, 0.4375, 0.578125, 0.68359375, 0.7626953125, 0.822021484375]):  # 1 - 0.75^n
        learner.learn(make_batch(update))
        assert all((p == 1).all() for p in learner.online.parameters())
        assert all((p == expected).all() for p in learner.target.parameters())


def copies(learner, updates):
    """Learn this many batches, and return after which updates the two networks are equal."""
    found = []
    for _ in range(updates):
        learner.learn(make_batch(learner.updates))
        if same(learner.online.state_dict(), learner.target.state_dict()):
            found.append(learner.updates)
    return found


def test_the_target_network_is_copied_when_its_period_has_passed_since_the_last_copy():
    learner = make(TINY.replace(target_period_updates=3))
    assert copies(learner, 7) == [3, 6]
    learner.target_period = 5
    assert copies(learner, 10) == [11, 16]
    learner.target_period = 1  # longer ago than that: at once
    assert copies(learner, 2) == [18, 19]


def test_a_loaded_learner_copies_when_the_saved_one_would_have():
    config = TINY.replace(target_period_updates=3)
    learner = make(config)
    learner.target_period = 5
    assert copies(learner, 7) == [5]
    state = learner.state()
    other = make(config, seed=9)
    other.target_period = 5
    other.load_state(state)
    assert copies(other, 4) == [10]
    del state["copied"]  # as older versions saved it, which copied after each multiple of the period
    older = make(config, seed=9)
    older.load_state(state)
    assert copies(older, 4) == [9]


def test_priorities_are_the_absolute_td_errors_before_the_update():
    learner, batch = make(), make_batch()
    q_tm1, q_t = learner.q_values(batch.obs), learner.q_values(batch.next_obs)  # target = online at first
    expected = np.abs(batch.reward + batch.discount * q_t.max(1) - q_tm1[np.arange(B), batch.action])
    np.testing.assert_allclose(learner.learn(batch)[1], expected, rtol=1e-5, atol=1e-6)


def test_double_and_plain_targets_differ_once_the_networks_do():
    batches = [make_batch(seed) for seed in range(3)]
    last = []
    for double in (True, False):
        learner = make(TINY.replace(double=double, learning_rate=0.1))
        for batch in batches:
            abs_td = learner.learn(batch)[1]
        last.append(abs_td)
    assert not np.allclose(*last)


def test_same_seed_and_batches_are_identical_to_the_bit_and_another_seed_is_not():
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    for seed in range(12):
        results = [learner.learn(make_batch(seed)) for learner in (a, b, c)]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert same(weights(a), weights(b))
    assert not same(weights(a), weights(c))


def test_construction_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), before)


def test_target_is_copied_at_its_period_and_only_then():
    learner = make()
    target = weights(learner)
    for update in range(1, 16):
        learner.learn(make_batch(update))
        if update % 5 == 0:
            target = weights(learner)
        assert same(learner.target.state_dict(), target)
        assert same(learner.online.state_dict(), target) == (update % 5 == 0)


def test_rows_of_weight_zero_change_nothing():
    batch = make_batch()
    batch.weight[3:] = 0
    other = batch._replace(obs=batch.obs.copy(), reward=batch.reward.copy())
    other.obs[3:], other.reward[3:] = 1, 50
    a, b = make(), make()
    a.learn(batch)
    b.learn(other)
    assert same(weights(a), weights(b))


def test_a_terminated_row_does_not_look_at_its_next_observation():
    batch = make_batch()._replace(discount=np.zeros(B, np.float32))
    a, b = make(), make()
    a.learn(batch)
    b.learn(batch._replace(next_obs=1 - batch.next_obs))
    assert same(weights(a), weights(b))


def test_gradients_are_clipped_after_they_are_measured():
    config = TINY.replace(optimizer="rmsprop", optimizer_eps=1e6, learning_rate=1e3, max_grad_norm=1e-3)
    learner = make(config)  # with so large an eps a step is learning_rate / 1000 times the gradient
    learner.learn(make_batch(), measure=True)
    metrics = learner.metrics()
    assert metrics["train/grad_norm"] > 0.01
    assert metrics["train/update_norm"] == pytest.approx(1e-3, rel=1e-3)


def test_act_is_the_argmax_of_q_values_for_any_number_of_rows():
    learner = make()
    for n in (1, 4, 7):
        obs = np.random.default_rng(n).random((n, *OBS), np.float32)
        actions, q = learner.act(obs), learner.q_values(obs)
        assert actions.dtype == np.int64
        assert q.dtype == np.float32
        assert q.shape == (n, ACTIONS)
        np.testing.assert_array_equal(actions, q.argmax(1))


def test_metrics_are_means_over_the_updates_since_the_last_call():
    learner = make()
    assert learner.metrics() == {"train/learning_rate": 1e-2}
    td, q_max, q_mean = [], [], []
    for seed in range(3):
        batch = make_batch(seed)
        q = learner.q_values(batch.obs)
        q_max.append(q.max())
        q_mean.append(q[np.arange(B), batch.action].mean())
        before = weights(learner)
        td.append(learner.learn(batch, measure=seed == 2)[1].mean())
    metrics = learner.metrics()
    names = "loss td_error q_mean q_max grad_norm param_norm update_norm update_ratio learning_rate"
    assert {name for name in metrics if "update_ratio/" not in name} == {f"train/{name}" for name in names.split()}
    assert metrics["train/td_error"] == pytest.approx(np.mean(td), rel=1e-5)
    assert metrics["train/q_mean"] == pytest.approx(np.mean(q_mean), rel=1e-4)
    assert metrics["train/q_max"] == pytest.approx(max(q_max), rel=1e-5)
    after = weights(learner)
    change = sum(((after[name] - before[name]) ** 2).sum().item() for name in after) ** 0.5
    norm = sum((tensor**2).sum().item() for tensor in before.values()) ** 0.5
    assert metrics["train/update_norm"] == pytest.approx(change, rel=1e-4)
    assert metrics["train/param_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["train/update_ratio"] == pytest.approx(change / norm, rel=1e-4)
    assert set(learner.metrics()) == {"train/learning_rate"}


def test_measuring_does_not_change_learning():
    a, b = make(), make()
    a.learn(make_batch(), measure=True)
    b.learn(make_batch())
    assert same(weights(a), weights(b))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_saved_and_loaded_learner_goes_on_bit_for_bit(optimizer):
    config = TINY.replace(optimizer=optimizer)
    whole = make(config)
    for seed in range(7):
        whole.learn(make_batch(seed))
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    resumed = make(config, seed=99)
    resumed.learn(make_batch(50))  # so that there is something to overwrite
    resumed.load_state(torch.load(file, weights_only=True))
    assert resumed.updates == 7
    for seed in range(7, 14):
        expected, got = whole.learn(make_batch(seed)), resumed.learn(make_batch(seed))
        np.testing.assert_array_equal(got[1], expected[1])
    assert same(weights(whole), weights(resumed))
    assert same(whole.target.state_dict(), resumed.target.state_dict())
    assert whole.metrics() == resumed.metrics()


def test_a_state_is_a_copy():
    learner = make()
    learner.learn(make_batch())
    state = learner.state()
    online, moment = weights(learner), state["optimizer"]["moments"][0]["exp_avg"].clone()
    other = make()
    other.load_state(state)
    for each in (learner, other):
        each.learn(make_batch(1))
    assert same(state["online"], online)
    assert torch.equal(state["optimizer"]["moments"][0]["exp_avg"], moment)


def test_a_foreign_state_is_refused_before_anything_changes():
    learner = make()
    learner.learn(make_batch())
    before = weights(learner)
    wide, rmsprop = make(TINY.replace(hidden=32)), make(TINY.replace(optimizer="rmsprop"))
    with pytest.raises(ConfigError, match=r"weight advantage.weight is \[3, 32\] in the saved state and \[3, 16\]"):
        learner.load_state(wide.state())
    with pytest.raises(ConfigError, match="--optimizer is 'adam'; the saved state needs 'rmsprop'"):
        learner.load_state(rmsprop.state())
    bad_target = learner.state() | {"target": wide.state()["target"], "online": make(seed=3).state()["online"]}
    with pytest.raises(ConfigError, match="advantage"):
        learner.load_state(bad_target)
    assert same(weights(learner), before)
    assert learner.updates == 1


def test_delayed_priorities_come_one_update_late_and_survive_a_reused_batch():
    prompt, late = make(delayed=False), make(delayed=True)
    expected = [prompt.learn(make_batch(seed)) for seed in range(6)]
    arrays = make_batch(0)  # one set of arrays for all batches, as replay hands them out
    got = []
    for seed in range(6):
        for array, fresh in zip(arrays, make_batch(seed), strict=True):
            array[:] = fresh
        got.append(late.learn(arrays))
    for array in arrays:
        array[:] = 0
    assert got[0] is None
    for (index, abs_td), (late_index, late_td) in zip(expected, [*got[1:], late.flush()], strict=True):
        np.testing.assert_array_equal(late_index, index)
        np.testing.assert_array_equal(late_td, abs_td)
    assert late.flush() is None
    assert same(weights(prompt), weights(late))


def test_a_state_holds_the_priorities_in_flight_and_leaves_them_there():
    learner, again = make(delayed=True), make(seed=9, delayed=True)
    batch = make_batch()
    learner.learn(batch)
    again.load_state(learner.state())
    first, second = learner.learn(make_batch(1)), again.learn(make_batch(1))
    np.testing.assert_array_equal(first[0], batch.index)
    for one, other in ((first, second), (learner.flush(), again.flush())):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_priorities_in_flight_may_be_of_another_batch_size():
    learner, again = make(delayed=True), make(TINY.replace(batch_size=TINY.batch_size * 2), delayed=True)
    batch = make_batch()
    learner.learn(batch)
    again.load_state(learner.state())
    np.testing.assert_array_equal(again.flush()[1], learner.flush()[1])


def test_other_integer_and_float_types_are_converted():
    a, b = make(), make()
    batch = make_batch()
    other = batch._replace(action=batch.action.astype(np.uint8), weight=batch.weight.astype(np.float64))
    np.testing.assert_array_equal(a.learn(batch)[1], b.learn(other)[1])
    np.testing.assert_array_equal(make(delayed=True).learn(other), None)
    assert same(weights(a), weights(b))


@pytest.mark.parametrize("delayed", [False, True])
def test_wrong_shapes_are_named(delayed):
    learner, batch = make(delayed=delayed), make_batch()
    with pytest.raises(ValueError, match=r"batch.reward is float32 \[7\]; give float32 \[8\]"):
        learner.learn(batch._replace(reward=batch.reward[1:]))
    with pytest.raises(ValueError, match=r"batch.obs is uint8 .*; give float32 \[8, 1, 10, 5\]"):
        learner.learn(batch._replace(obs=batch.obs.astype(np.uint8)))
    with pytest.raises(ValueError, match=r"batch.index has shape \[1\]; give \[8\]"):
        learner.learn(batch._replace(index=batch.index[:1]))
    with pytest.raises(ValueError, match=r"obs is float32 \[4, 10, 5\]; give float32 \[N, 1, 10, 5\]"):
        learner.act(np.zeros((4, 10, 5), np.float32))
    assert learner.updates == 0


def test_bfloat16_learns_nearly_the_same():
    a, b = make(), make(TINY.replace(precision="bfloat16"))
    batch = make_batch()
    for _ in range(3):
        exact, rough = a.learn(batch), b.learn(batch)
    np.testing.assert_allclose(rough[1], exact[1], atol=0.05)
    assert not np.array_equal(rough[1], exact[1])
    assert all(tensor.dtype == torch.float32 for tensor in weights(b).values())
    assert b.metrics()["train/grad_norm"] > 0


@pytest.mark.parametrize(("obs_shape", "dtype", "trunk"), [(OBS, "float32", "vector"), (IMAGE, "uint8", "small")])
def test_compiled_and_eager_agree(obs_shape, dtype, trunk):
    config = TINY.replace(trunk=trunk, learning_rate=1e-3)
    eager = Learner(config, obs_shape, dtype, ACTIONS, CPU, 1)
    rng = torch.get_rng_state()
    compiled = Learner(config.replace(compile=True), obs_shape, dtype, ACTIONS, CPU, 1)
    assert torch.equal(torch.get_rng_state(), rng)
    assert same(weights(eager), weights(compiled))  # the warm-up left no trace
    assert compiled.updates == 0
    assert "train/loss" not in compiled.metrics()
    for seed in range(7):  # across one copy of the target
        batch = make_batch(seed, obs_shape, dtype)
        np.testing.assert_allclose(compiled.learn(batch)[1], eager.learn(batch)[1], rtol=1e-3, atol=1e-4)
    ours, theirs = compiled.metrics(), eager.metrics()
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    for n in (4, 3):
        np.testing.assert_array_equal(compiled.act(batch.obs[:n]), compiled.q_values(batch.obs[:n]).argmax(1))
    assert compiled.state()["online"].keys() == eager.state()["online"].keys()  # no `_orig_mod.`
    eager.load_state(compiled.state())
    assert same(weights(eager), weights(compiled))


@pytest.mark.parametrize("where", ["at once", "at the first call"])
def test_a_compiler_that_fails_leaves_eager_and_one_warning(monkeypatch, where):
    def fail(*_args, **_kwargs):
        raise RuntimeError("No working C++ compiler found\nand a long trace")

    monkeypatch.setattr(torch, "compile", fail if where == "at once" else lambda *_a, **_k: fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner = make(TINY.replace(compile=True))
    assert len(caught) == 1
    assert "torch.compile failed (No working C++ compiler found); continuing without it" in str(caught[0].message)
    assert "--no-compile" in str(caught[0].message)
    reference, batch = make(), make_batch()
    np.testing.assert_array_equal(learner.learn(batch)[1], reference.learn(batch)[1])
    np.testing.assert_array_equal(learner.act(batch.obs[:4]), reference.act(batch.obs[:4]))


def test_ctrl_c_while_compiling_is_no_compile_failure(monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "compile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(TINY.replace(compile=True))


def test_threads_follow_the_setting_or_the_cores_of_this_process(monkeypatch):
    before = torch.get_num_threads()
    try:
        make(TINY.replace(torch_threads=1))
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(learner_module, "cpu_count", lambda: 2)
        make(TINY.replace(torch_threads=0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_gpu_learns_as_the_cpu_does_with_priorities_one_update_late(compiled):
    config, cuda = TINY.replace(compile=compiled), torch.device("cuda")
    slow, fast = make(TINY), Learner(config, OBS, np.float32, ACTIONS, cuda, 1)
    batches = [make_batch(seed) for seed in range(12)]
    expected = [slow.learn(batch) for batch in batches]
    got = [fast.learn(batch) for batch in batches]
    assert got[0] is None
    for (index, abs_td), late in zip(expected, [*got[1:], fast.flush()], strict=True):
        np.testing.assert_array_equal(late[0], index)
        np.testing.assert_allclose(late[1], abs_td, rtol=1e-3, atol=1e-4)
    obs = batches[0].obs[:4]
    np.testing.assert_array_equal(fast.act(obs), fast.q_values(obs).argmax(1))
    again = Learner(config, OBS, np.float32, ACTIONS, cuda, 2)
    again.load_state(fast.state())
    make(TINY).load_state(fast.state())  # a CPU may go on where a GPU left off
    for learner in (fast, again):
        for batch in batches:
            learner.learn(batch)
    np.testing.assert_allclose(again.flush()[1], fast.flush()[1], rtol=1e-4, atol=1e-5)
