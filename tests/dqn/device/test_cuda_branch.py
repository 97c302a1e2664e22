"""What the code does on a GPU, on one that the CPU plays: see `stand_in_cuda`."""

from __future__ import annotations

import gc
import itertools
import signal
import warnings
import weakref
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from number_run import CONFIG, batches, play, rows
from stand_in_cuda import Cuda, stand_in_cuda
from torch._inductor import config as inductor
from torch._inductor.codecache import PyCodeCache

from fastrl.config import PRESETS, DQNConfig
from fastrl.dqn import checkpoint
from fastrl.dqn import learner as learner_module
from fastrl.dqn.device import cuda_graph
from fastrl.dqn.device.store import DeviceStore
from fastrl.dqn.learner import Learner
from fastrl.dqn.peers import Peers
from fastrl.replay import Batch

CPU, GPU = torch.device("cpu"), torch.device("cuda")
IMAGE, ACTIONS = (2, 36, 36), 3
RATE = 2.0**-8  # the same number in float32, as a GPU has it
SMALL = PRESETS["cuda"].config.replace(
    trunk="small", head="expected", double=True, munchausen=False, hidden=16, batch_size=8, num_envs=8, env_groups=2,
    precision="float32", target_period_updates=3, learning_rate=RATE, torch_threads=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def eager_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that computes as a GPU does, to compare with to the bit."""
    monkeypatch.setattr(Learner, "_fast_trunk", lambda *_: None)


def make(config: DQNConfig = SMALL, device: torch.device = GPU, seed: int = 1, **options: Any) -> Learner:
    return Learner(config, IMAGE, np.uint8, ACTIONS, device, seed, **options)


def batch(seed: int) -> Batch:
    rng, B = np.random.default_rng(seed), SMALL.batch_size
    obs = rng.integers(0, 256, (2, B, *IMAGE), np.uint8)
    discount = rng.choice(np.float32([0, 0.97]), B)
    reward, weight = rng.normal(size=B).astype(np.float32), rng.uniform(0.2, 1, B).astype(np.float32)
    return Batch(obs[0], rng.integers(0, ACTIONS, B), reward, obs[1], discount, weight, rng.integers(0, 1000, B))


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.online.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def learn(learner: Learner, seeds: range) -> list[np.ndarray]:
    """Learn one batch for each seed, with a rate of its own, and return the errors of each."""
    errors = []
    for seed in seeds:
        learner.set_learning_rate(RATE * 2.0**-seed)
        errors.append(learner.learn(batch(seed), measure=seed % 4 == 0))
    return [e[1] for e in [*errors, learner.flush()] if e is not None]


def is_recorded(learner: Learner) -> bool:
    return all(hasattr(function, "recorded") for function in (learner._act, learner._update))


def test_a_recording_computes_nothing_and_a_replay_reads_and_writes_the_same_memory(cuda):
    given, total = torch.ones(3), torch.zeros(3)

    def add() -> torch.Tensor:
        total.add_(given)
        return total * 2

    replay = cuda_graph.record(add)
    assert total.tolist() == [cuda_graph.WARM_UPS] * 3
    given.fill_(10)
    assert replay().tolist() == [2 * (cuda_graph.WARM_UPS + 10)] * 3
    assert replay() is replay()
    assert total.tolist() == [cuda_graph.WARM_UPS + 30] * 3


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.item(),
        lambda t: bool(t),
        lambda t: t.cpu(),
        lambda t: t.nonzero(),
        lambda t: torch.tensor(1.0, device=GPU),
        lambda t: torch.cuda.synchronize(),
    ],
    ids=["item", "bool", "cpu", "nonzero", "tensor", "synchronize"],
)
def test_what_waits_for_the_device_cannot_be_recorded(cuda, wait):
    t = torch.ones(())

    def function() -> torch.Tensor:
        wait(t)
        return t

    with pytest.raises(RuntimeError, match="capture"):
        cuda_graph.record(function)
    assert cuda.stream is cuda.main


@pytest.mark.parametrize(
    ("optimizer", "settings", "dueling"),
    list(itertools.product(["adam", "rmsprop"], [
        {}, {"double": False}, {"head": "c51"}, {"head": "c51", "double": False}, {"head": "quantile"},
        {"munchausen": True}, {"head": "quantile", "munchausen": True}, {"noisy": True},
        {"head": "iqn", "quantiles": 5, "noisy": True}, {"target_tau": 0.25},
        {"average_updates": 3},
    ], [False, True])),
)  # fmt: skip
def test_replayed_updates_are_the_eager_ones_of_a_cpu_to_the_bit(cuda, optimizer, settings, dueling):
    config = SMALL.replace(optimizer=optimizer, dueling=dueling, **settings)
    gpu, cpu = make(config), make(config.replace(compile=False), CPU)
    assert is_recorded(gpu)
    assert cuda.log["recordings"] == 2
    assert same(weights(gpu), weights(cpu))  # the recording left no trace
    for got, expected in zip(learn(gpu, range(12)), learn(cpu, range(12)), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert cuda.log["replays"] == 12
    assert same(gpu.judged.state_dict(), cpu.judged.state_dict())
    assert same(gpu.target.state_dict(), cpu.target.state_dict())
    obs = batch(9).obs[: config.group_size]
    np.testing.assert_array_equal(gpu.act(obs), cpu.act(obs))
    state = gpu.state()
    assert gpu.metrics() == cpu.metrics()
    resumed = make(config, seed=7), make(config.replace(compile=False), CPU, seed=9)
    for learner in resumed:
        learner.load_state(state)
    errors = [learn(learner, range(12, 22)) for learner in (gpu, *resumed)]
    assert np.array_equal(errors[0], errors[1])
    assert np.array_equal(errors[0], errors[2])
    for learner in resumed:
        assert same(gpu.judged.state_dict(), learner.judged.state_dict())
    assert same(weights(gpu), weights(resumed[0]))
    assert same(weights(gpu), weights(resumed[1]))


class Two(Peers):
    """A learner beside another, whose gradients are always zero."""

    count = 2

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.averaged = cuda, list[torch.Tensor]()

    @property
    def average(self):
        def mean(gradients: torch.Tensor) -> None:
            assert not self._cuda.recording
            self.averaged.append(gradients.clone())
            gradients.div_(2)

        return mean


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("settings", [{}, {"target_tau": 0.25}, {"head": "iqn", "quantiles": 5, "noisy": True}])
def test_with_several_learners_an_update_is_two_graphs_and_the_gradients_are_averaged_between(
    cuda, optimizer, settings
):
    config, peers, eager_peers = SMALL.replace(optimizer=optimizer, **settings), Two(cuda), Two(cuda)
    gpu = make(config, peers=peers)
    eager = make(config.replace(compile=False), peers=eager_peers)
    assert is_recorded(gpu)
    assert peers.averaged == []  # recording exchanges nothing
    assert cuda.log["recordings"] == 3
    before = cuda.log["replays"]
    errors = learn(gpu, range(7))
    assert cuda.log["replays"] - before == 2 * 7
    for got, expected in zip(errors, learn(eager, range(7)), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert same(weights(gpu), weights(eager))
    assert same(gpu.target.state_dict(), eager.target.state_dict())
    assert len(peers.averaged) == 7
    assert all(map(torch.equal, peers.averaged, eager_peers.averaged))
    assert float(peers.averaged[0].norm()) > 0
    assert gpu.metrics() == eager.metrics()


def test_replayed_updates_in_bfloat16_are_the_eager_ones(cuda):
    config = SMALL.replace(precision="auto")
    recorded, eager, exact = make(config), make(config.replace(compile=False)), make()
    assert (recorded.precision, exact.precision) == ("bfloat16", "float32")
    errors = [learn(learner, range(6)) for learner in (recorded, eager, exact)]
    assert np.array_equal(errors[0], errors[1])
    assert not np.array_equal(errors[0], errors[2])
    np.testing.assert_allclose(errors[0], errors[2], atol=0.05)


def test_the_host_never_waits_for_the_update_that_it_has_just_asked_for(cuda):
    learner = make()
    learn(learner, range(2))
    before = cuda.log["waits"]
    for seed in range(8):
        learner.learn(batch(seed))
    # Observations and columns go to memory whose last copy was asked for several updates ago; the errors of the update
    # before come.
    assert cuda.log["waits"] - before == 8 * 3 + 7


def test_an_update_that_waits_for_the_device_goes_on_eager_with_one_warning(cuda, monkeypatch):
    def waits(losses, weight):
        mean = (weight * losses).mean()
        assert mean.item() == mean.item()
        return mean

    monkeypatch.setattr(learner_module, "weighted_mean", waits)
    with pytest.warns(RuntimeWarning, match=r"recording a CUDA graph failed .*capture.*continuing without it"):
        learner = make()
    assert not is_recorded(learner)
    np.testing.assert_array_equal(learn(learner, range(3)), learn(make(SMALL.replace(compile=False), CPU), range(3)))


PLACES = [("begin", 1), ("end", 1), ("aten::convolution", 1), ("aten::argmax", 1), ("begin", 2), ("end", 2)]
PLACES += [
    (name, 2) for name in ("aten::huber_loss", "aten::convolution_backward", "aten::_fused_adam_", "aten::clamp_")
]


@pytest.mark.parametrize(("place", "number"), PLACES)
def test_a_recording_that_fails_leaves_a_learner_that_works(cuda, place, number):
    def fail(at: str, recording: int) -> None:
        if (at, recording) == (place, number):
            raise RuntimeError("out of luck")

    cuda.fail = fail
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner = make()
    (warning,) = caught
    assert "recording a CUDA graph failed (" in str(warning.message)
    assert cuda.stream is cuda.main
    assert gc.isenabled()
    assert not hasattr(learner._act, "recorded")
    assert not hasattr(learner._update, "recorded")
    eager = make(SMALL.replace(compile=False), CPU)
    assert same(weights(learner), weights(eager))
    np.testing.assert_array_equal(learn(learner, range(5)), learn(eager, range(5)))
    assert same(weights(learner), weights(eager))
    assert learner.metrics() == eager.metrics()


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_in_the_middle_of_a_recording(cuda, collects):
    seen = []

    def function() -> torch.Tensor:
        seen.append(gc.isenabled())
        return torch.ones(1)

    if not collects:
        gc.disable()
    try:
        cuda_graph.record(function)
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    assert seen[-1] is False


def test_a_recorded_graph_keeps_the_kernels_that_it_calls_after_pytorch_has_forgotten_them(cuda, monkeypatch):
    modules = [ModuleType("kernels")]
    loaded = weakref.ref(modules[0])
    monkeypatch.setattr(PyCodeCache, "modules", modules)
    replay = cuda_graph.record(lambda: torch.ones(1))
    modules.clear()
    assert loaded() is not None
    del replay
    gc.collect()
    assert loaded() is None


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("name", cuda_graph.LAUNCHERS)
@pytest.mark.parametrize("wish", [None, "1"])
def test_launchers_that_may_outlive_their_kernel_are_off_on_a_gpu_unless_asked_for(
    cuda, monkeypatch, device, name, wish
):
    if wish is None:
        monkeypatch.delenv(cuda_graph.LAUNCHERS[name], raising=False)
    else:
        monkeypatch.setenv(cuda_graph.LAUNCHERS[name], wish)
    if not hasattr(inductor, name) and torch.__version__ < (2, 13):
        pytest.skip("this PyTorch is older than the launcher")
    with inductor.patch({name: True}):  # also says so if PyTorch no longer has the setting
        make(device=device)
        assert getattr(inductor, name) == (device == CPU or wish == "1")


def accumulators(learner: Learner) -> list[dict[str, object]]:
    """Return what was written on the nodes that add up the gradients of the weights; new ones where none is left."""
    return [p.expand_as(p).grad_fn.next_functions[0][0].metadata for p in learner.online.parameters()]


def test_no_node_of_the_first_compiled_calls_lives_to_see_the_recording(cuda, monkeypatch):
    """They remember the stream of their first use, which a recording may not wait for."""
    learner, seen = make(SMALL.replace(compile=False)), []

    def compiled(function, **_):  # as torch.compile does: what a call made hangs in a circle
        def call(*args):
            result = function(*args)
            if isinstance(result, tuple):
                for metadata in accumulators(learner):
                    metadata["made by"] = "the first call"
                circle = [result]
                circle.append(circle)
            return result

        return call

    record = cuda_graph.record

    def watched(function):
        calls = itertools.count()

        def call():
            if next(calls) == 0:
                seen.append([dict(metadata) for metadata in accumulators(learner)])
            return function()

        return record(call)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(cuda_graph, "record", watched)
    learner.config = SMALL
    gc.disable()  # or luck would do it
    try:
        learner._build_functions()
    finally:
        gc.enable()
    assert is_recorded(learner)
    assert [len(nodes) for nodes in seen] == [len(learner._params)] * 2
    assert not any(itertools.chain(*seen))


@pytest.mark.parametrize(("wish", "threads"), [(0, 1), (2, 2)])
def test_beside_a_gpu_pytorch_has_one_thread_and_freed_memory_is_kept(cuda, monkeypatch, wish, threads):
    before, kept = torch.get_num_threads(), []
    monkeypatch.setattr(learner_module, "keep_freed_memory", lambda: kept.append(True))
    try:
        torch.set_num_threads(3)
        make(SMALL.replace(torch_threads=wish, compile=False))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert kept


@pytest.mark.parametrize(
    ("has", "precision", "words"),
    [
        (True, "auto", "on cuda in bfloat16, 8 games"),
        (False, "auto", "on cuda in float32 (this GPU has no bfloat16), 8 games"),
        (True, "float32", "on cuda in float32, 8 games"),
    ],
)
def test_a_run_says_what_a_gpu_computes_in(tmp_path, capsys, has, precision, words):
    with stand_in_cuda(bfloat16=has):
        config = CONFIG.replace(device="cuda", total_frames=8, learn_start_steps=0, precision=precision)
        play(tmp_path / "run", config=config, quiet=False)
    assert words in capsys.readouterr().out


def test_a_whole_run_on_the_device_is_the_same_recorded_and_eager_killed_and_resumed(cuda, tmp_path):
    config = CONFIG.replace(
        compile=True, device="cuda", env_groups=2, total_frames=1_300, checkpoint_every_frames=500,
        evaluate_every_frames=600, n_step_steps=500, learning_rate_steps=500,
    )  # fmt: skip
    whole = play(tmp_path / "whole", config=config)
    assert is_recorded(whole.learner)
    assert whole.learner.delayed
    assert isinstance(whole.buffer._store, DeviceStore)
    assert cuda.log["replays"] > whole.learner.updates > 50
    assert whole.evaluation.last is not None
    eager = play(tmp_path / "eager", config=config.replace(compile=False))
    assert not is_recorded(eager.learner)
    cut = play(tmp_path / "cut", config=config, at=845, number=signal.SIGTERM)
    assert 845 <= cut.frames < 900
    resumed = play(tmp_path / "cut", config=config, resume=True)
    for other in (eager, resumed):
        assert (other.steps, other.learner.updates) == (whole.steps, whole.learner.updates)
        assert batches(other.folder) == batches(whole.folder)
        assert rows(other.folder) == rows(whole.folder)
        states = [checkpoint.load_learner(run.folder.find()) for run in (whole, other)]
        assert all(torch.equal(states[0]["online"][k], states[1]["online"][k]) for k in states[0]["online"])
