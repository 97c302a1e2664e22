from __future__ import annotations

import pytest
import torch
from by_torchrun import set_launch

from fastrl.base.errors import ConfigError
from fastrl.dqn.device.device import has_bfloat16, pick_device

CPU = torch.device("cpu")


def test_a_device_is_picked_or_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"--device is 'cuda' but .*give --device cpu"):
        pick_device("cuda")
    with pytest.raises(
        ConfigError,
        match="--device is 'tpu', but networks learn on a CPU or a CUDA GPU alone; give auto, cpu or cuda",
    ):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == CPU


def test_bfloat16_of_the_cpu_is_a_plain_answer():
    assert has_bfloat16(CPU) in (True, False)


@pytest.mark.parametrize(("local_rank", "local_count", "device"), [(1, 2, "cuda:1"), (0, 2, "cuda:0"), (0, 1, "cuda")])
def test_each_of_several_learners_has_the_gpu_of_its_number_in_every_thread(
    monkeypatch, local_rank, local_count, device
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    set_launch(monkeypatch, rank=2 + local_rank, count=4, local_rank=local_rank, local_count=local_count)
    assert pick_device("auto") == pick_device("cuda") == torch.device(device)
    assert pick_device("cpu") == CPU
