"""Checkpoints and weights of another format are refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastrl.base.errors import ConfigError
from fastrl.dqn import checkpoint


def test_weights_of_another_format_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    network = {"network": json.dumps({"trunk": "small"})}
    for format, metadata in ((1, network), (3, network | {"format": "3"})):
        save_file({"w": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(
            ConfigError,
            match=f"has format {format}, and this version reads format 2; install the version of fastrl that wrote",
        ):
            checkpoint.load_weights(path)
    save_file({"w": torch.ones(2)}, path, metadata=network | {"format": "2"})
    weights, settings = checkpoint.load_weights(path)
    assert weights["w"].tolist() == [1, 1]
    assert settings == {"trunk": "small"}


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"format": 1, "steps": 3}))
    with pytest.raises(ConfigError, match="has format 1, and this version reads formats 2 and 3"):
        checkpoint.load_state(tmp_path)
