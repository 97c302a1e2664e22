"""Checkpoints and weights of another format are refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastrl.base.errors import ConfigError
from fastrl.dqn import checkpoint
from fastrl.dqn.network import QNetwork

BEFORE = ("obs_shape", "num_actions", "trunk", "hidden", "dueling", "width", "atoms", "v_max")
"""Settings of a network in weights of format 2."""


def test_weights_of_another_format_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    network = {"network": json.dumps({"trunk": "small"})}
    for format, metadata in ((1, network), (4, network | {"format": "4"})):
        save_file({"w": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(
            ConfigError, match=f"has format {format}, and this version reads formats 2 and 3; install the version"
        ):
            checkpoint.load_weights(path)
    save_file({"w": torch.ones(2)}, path, metadata=network | {"format": "3"})
    weights, settings = checkpoint.load_weights(path)
    assert weights["w"].tolist() == [1, 1]
    assert settings == {"trunk": "small"}


@pytest.mark.parametrize(("atoms", "head"), [(1, "expected"), (51, "c51")])
def test_weights_of_before_heads_had_names_get_one(tmp_path, atoms, head):
    path, network = tmp_path / "weights.safetensors", QNetwork((2,), 3, "vector", 4, atoms=atoms, head=head)
    content = {k: v for k, v in network.settings.items() if k in BEFORE}
    save_file(network.state_dict(), path, metadata={"network": json.dumps(content), "format": "2"})
    again = checkpoint.load_network(path)
    assert again.settings == network.settings
    obs = torch.randn(5, 2)
    assert torch.equal(again(obs), network(obs))


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"format": 1, "steps": 3}))
    with pytest.raises(
        ConfigError, match=r"state\.json has format 1, and this version reads formats 2 and 3; install the version"
    ):
        checkpoint.load_state(tmp_path)
