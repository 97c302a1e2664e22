"""Arrays on their way to a device and back; without a GPU through memory that is not pinned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastrl.dqn.device.transfer import Columns, Download, Upload

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    ),
]


def arrays():
    """Arrays of many shapes and dtypes, and some that PyTorch does not take as they are."""
    rng = np.random.default_rng(0)
    for dtype in "?bhilBHILefdFD":
        for shape in [(), (0,), (0, 3), (5,), (2, 3, 4)]:
            yield rng.integers(0, 2, shape).astype(dtype)
    yield rng.random((4, 6))[::-2, ::3]
    frozen = rng.random(7)
    frozen.flags.writeable = False
    yield frozen
    yield np.broadcast_to(np.float32(3), (2, 5))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("staged", [False, True])
def test_what_is_sent_arrives_whatever_its_shape_and_dtype(device, staged):
    upload = Upload(device, staged=staged)
    sent = [(array, upload.send(array)) for array in arrays()]
    for array, tensor in sent:  # many more than the depth, all still there
        arrived = tensor.cpu().numpy()
        assert tensor.device.type == device.type
        assert (arrived.shape, arrived.dtype) == (array.shape, array.dtype)
        assert np.array_equal(arrived, array)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_staged_array_may_change_once_it_is_sent(device):
    upload = Upload(device, depth=2, staged=True)
    array, sent = np.zeros((3, 4), np.float32), []
    for k in range(9):
        array[:] = k
        sent.append(upload.send(array))
    array[:] = -1
    assert [tensor.unique().tolist() for tensor in sent] == [[k] for k in range(9)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("staged", [False, True])
def test_what_is_sent_into_memory_of_the_device_arrives_there_and_nowhere_else(device, staged):
    upload, memory = Upload(device, staged=staged), torch.full((3, 2, 4), -1.0, device=device)
    for k in range(9):
        array = np.full((2, 4), k, np.float32)
        assert upload.send(array, memory[1]).data_ptr() == memory[1].data_ptr()
        array[:] = -5
        assert memory.cpu().flatten(1).tolist() == [[-1] * 8, [k] * 8, [-1] * 8]


COLUMNS = {"action": ((5,), torch.int64), "none": ((0,), torch.float32), "reward": ((5,), torch.float32),
           "mask": ((5, 3), torch.bool), "weight": ((5,), torch.float32)}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("staged", [False, True])
def test_columns_cross_together_into_memory_that_stays(device, staged):
    columns, rng = Columns(COLUMNS, device, staged=staged), np.random.default_rng(0)
    before = {name: tensor.data_ptr() for name, tensor in columns.tensors.items()}
    assert {name: (tuple(t.shape), t.dtype) for name, t in columns.tensors.items()} == COLUMNS
    assert not any(tensor.any() for tensor in columns.tensors.values())
    assert not any(address % 16 for address in before.values())
    for _ in range(9):
        values = {
            "action": rng.integers(9, size=5).astype(np.int32),  # cast
            "none": np.zeros(0, np.float32),
            "reward": rng.random(10).astype(np.float32)[::-2],  # not contiguous
            "mask": rng.random((5, 3)) < 0.5,
            "weight": rng.random(5),
        }
        kept = {name: value.copy() for name, value in values.items()}
        columns.send(values)
        for value in values.values():
            value[...] = 0  # what was sent may change
        for name, value in kept.items():
            arrived = columns.tensors[name].cpu().numpy()
            assert np.array_equal(arrived, value.astype(arrived.dtype))
    assert {name: tensor.data_ptr() for name, tensor in columns.tensors.items()} == before


def test_unstaged_a_cpu_gets_the_array_itself():
    array = np.zeros(3)
    tensor = Upload(CPU).send(array)
    array[1] = 5
    assert tensor.tolist() == [0, 5, 0]


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("dtype", [">f4", np.longdouble])
def test_a_dtype_that_pytorch_lacks_is_refused(dtype, staged):
    with pytest.raises(ValueError, match=r"dtype is .*which PyTorch does not have"):
        Upload(CPU, staged=staged).send(np.zeros(2, dtype))


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_download_brings_the_values_of_its_start(device):
    download = Download(4, device)
    values = torch.arange(4.0, device=device)
    download.start(values)
    values.zero_()
    first = download.finish()
    download.start(values)
    assert first.tolist() == [0, 1, 2, 3]
    assert download.finish().tolist() == [0, 0, 0, 0]
    assert first.tolist() == [0, 1, 2, 3]  # a copy
