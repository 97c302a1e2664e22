"""A GPU played by the CPU, so that the code for CUDA runs where there is none.

What is asked for on `cuda` lies in the host's memory. A CUDA graph is the list of operators that ran while it was
recorded, and a replay runs them again on the same memory. As on a GPU, a recording computes nothing: memory of before
is put back as it was, memory of its own is NaN until the first replay, and whatever waits for the device or brings data
from the host in the middle of it raises. It cannot show speed, overlap, or a wait that is missing: all is done at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Operators that give the host a value or a shape that depends on one: it waits for the device."""
CROSSINGS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "tensor", "as_tensor",
             "from_numpy"}  # fmt: skip
"""Functions that bring data to the host, or from it."""
Launch = tuple[Callable[..., Any], Any, Any, list[torch.Tensor]]


class Cuda:
    """The state of the device.

    Attributes
    ----------
    log : Counter
        How often what happened: "recordings", "replays", and "waits" of the host.
    recording : bool
        Whether a graph is recorded at this moment.
    fail : callable
        Called with each place that a recording comes to ("begin", the name of each operator, "end") and the number of
        the recording; it may raise.
    """

    def __init__(self) -> None:
        self.log: Counter[str] = Counter()
        self.recording = False
        self.main = self.stream = Stream(self)
        self.fail: Callable[[str, int], None] = lambda place, number: None

    def wait(self, what: str) -> None:
        """Let the host wait for the device."""
        if self.recording:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        self.log["waits"] += 1


class Stream:
    """A queue of work, which here is done at once."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def synchronize(self) -> None:
        self._cuda.wait("Stream.synchronize")

    def is_capturing(self) -> bool:
        return self._cuda.recording


class Event:
    """A mark on a stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def record(self, stream: Stream | None = None) -> None:
        assert stream in (None, self._cuda.stream)

    def synchronize(self) -> None:
        self._cuda.wait("Event.synchronize")


class Graph:
    """What a recording launched."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.launches = cuda, list[Launch]()

    def replay(self) -> None:
        assert not self._cuda.recording
        self._cuda.log["replays"] += 1
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for function, args, kwargs, made in self.launches:
                again = [t for t in tree_leaves(function(*args, **kwargs)) if isinstance(t, torch.Tensor)]
                for tensor, value in zip(made, again, strict=False):  # `made` is empty where memory is written in place
                    tensor.copy_(value)


class Recorder(TorchDispatchMode):
    """Runs operators, and notes them as launches of a graph."""

    def __init__(self, cuda: Cuda, graph: Graph) -> None:
        super().__init__()
        self._cuda, self._graph = cuda, graph
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # memory, and what it held
        self._made: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if WAITS & set(func.tags):
            self._cuda.wait(str(func))
        self._cuda.fail(func._schema.name, self._cuda.log["recordings"])
        given = {t.untyped_storage()._cdata: t.untyped_storage() for t in _tensors((args, kwargs))}
        if func._schema.is_mutable:
            for key, memory in given.items():
                if key not in self._made:
                    self._before.setdefault(key, (memory, memory.clone()))
        out = func(*args, **kwargs)
        made = [t for t in _tensors(out) if t.untyped_storage()._cdata not in given]
        self._made |= {t.untyped_storage()._cdata: t.untyped_storage() for t in made}
        if made or func._schema.is_mutable:  # all else are views
            args, kwargs = tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, (args, kwargs))
            self._graph.launches.append((func, args, kwargs, [t.detach() for t in made]))
        return out

    def undo(self) -> None:
        """Leave memory as a recording does."""
        for memory, value in self._before.values():
            memory.copy_(value)
        for *_, made in self._graph.launches:
            for tensor in made:
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)


class GraphContext:
    """``with torch.cuda.graph(graph, stream=...)``; leaves the stream as PyTorch does where it fails."""

    def __init__(self, cuda: Cuda, graph: Graph, stream: Stream) -> None:
        self._cuda, self._stream, self._before = cuda, stream, cuda.stream
        self._recorder = Recorder(cuda, graph)

    def __enter__(self) -> None:
        self._cuda.wait("torch.cuda.graph")
        self._cuda.stream = self._stream
        self._cuda.log["recordings"] += 1
        self._cuda.fail("begin", self._cuda.log["recordings"])
        self._cuda.recording = True
        self._recorder.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._recorder.__exit__(kind, error, trace)
        self._cuda.recording = False
        self._recorder.undo()
        if error is not None:
            raise RuntimeError("operation failed due to a previous error during capture") from error
        self._cuda.fail("end", self._cuda.log["recordings"])
        self._cuda.stream = self._before


class OnTheHost(TorchFunctionMode):
    """Takes the CPU where `cuda` is asked for."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = dict(kwargs or {})
        crosses = name in CROSSINGS or (name == "to" and any(_is_cuda(x) for x in (*args, *kwargs.values())))
        if crosses and self._cuda.recording:
            self._cuda.wait(name)
        args = [CPU if _is_cuda(x) else x for x in args]
        kwargs = {key: CPU if _is_cuda(x) else x for key, x in kwargs.items() if key != "pin_memory"}
        return func(*args, **kwargs)


@contextmanager
def stand_in_cuda(*, bfloat16: bool = True, compile: bool = False) -> Iterator[Cuda]:
    """Let there be a GPU, with or without bfloat16; without `compile`, torch.compile gives back what it is given."""
    cuda = Cuda()
    states = [torch.get_rng_state()]
    autocast, run_thread = torch.autocast, threading.Thread.run

    @contextmanager
    def stream(new: Stream) -> Iterator[None]:
        before, cuda.stream = cuda.stream, new
        yield
        cuda.stream = before

    def run(thread: threading.Thread) -> None:  # modes are a thread's own
        with OnTheHost(cuda):
            run_thread(thread)

    replaced = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: bfloat16 or including_emulation,
        "mem_get_info": lambda device=None: (70 << 30, 80 << 30),
        "Stream": lambda: Stream(cuda),
        "Event": lambda: Event(cuda),
        "CUDAGraph": lambda: Graph(cuda),
        "graph": lambda graph, stream: GraphContext(cuda, graph, stream),
        "stream": stream,
        "current_stream": lambda device=None: cuda.stream,
        "set_stream": lambda stream: setattr(cuda, "stream", stream),
        "synchronize": lambda device=None: cuda.wait("torch.cuda.synchronize"),
        "get_rng_state": lambda device: states[-1].clone(),
        "set_rng_state": lambda state, device: states.append(state),
    }
    with (
        patch.multiple(torch.cuda, **replaced),
        patch.object(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")),
        patch.object(torch.accelerator, "current_stream", lambda: cuda.stream),
        patch.object(torch, "autocast", lambda device, *args, **kwargs: autocast("cpu", *args, **kwargs)),
        patch.object(torch, "compile", torch.compile if compile else lambda function, **_: function),
        patch.object(threading.Thread, "run", run),
        OnTheHost(cuda),
    ):
        yield cuda
    assert cuda.stream is cuda.main


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_cuda(x: Any) -> bool:
    return isinstance(x, torch.device) and x.type == "cuda"


def errors_of_both(gpu: Any, gpu_replay: Any, cpu: Any, cpu_replay: Any, updates: int = 6) -> list[tuple[Any, Any]]:
    """Let learners on the GPU and on the CPU learn in turns; return the errors of each update, the GPU's first."""
    errors: dict[Any, list[Any]] = {gpu: [], cpu: []}
    for _ in range(updates):
        for learner, replay in ((gpu, gpu_replay), (cpu, cpu_replay)):
            learned = learner.learn(replay.sample(8, beta=0.5))
            errors[learner] += [] if learned is None else [learned[1]]
    last = gpu.flush()  # errors of a GPU come an update late
    assert last is not None
    return list(zip([*errors[gpu], last[1]], errors[cpu], strict=True))
