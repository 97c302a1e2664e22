from __future__ import annotations

import pytest
import torch

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
