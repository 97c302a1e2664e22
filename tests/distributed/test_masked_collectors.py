"""Action masks of games that collectors play, on the fake engine: they act by them and send them along."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from fake_engine import PEACE, TROUBLE, FakeEngine
from masked_envs import Doors, make_next, make_same, mask_of

pytest.importorskip("envpool")

from fastrl import train
from fastrl.distributed import engine
from fastrl.distributed.collectors import Collectors
from fastrl.dqn.callbacks import Callback
from fastrl.envs.masks import ACTION_MASK
from fastrl.envs.names import name_of


class Looks(Callback):
    """Draws every row of the replay at the end, and compares its masks with those of its observations."""

    key = "looks"

    def on_end(self, run):
        batch = run.buffer.sample(run.buffer.drawable)
        for k in range(len(batch.action)):
            np.testing.assert_array_equal(batch.extra[ACTION_MASK][k], mask_of(batch.obs[k, -1]))
            assert batch.extra[ACTION_MASK][k][batch.action[k]]
            if batch.discount[k]:
                np.testing.assert_array_equal(batch.next_extra[ACTION_MASK][k], mask_of(batch.next_obs[k, -1]))
        self.seen = len(batch.action)


def train_on(make_env, tmp_path, callbacks=(), trouble=PEACE, **settings):
    made = []

    def fake(config, seed, frame_bytes):
        made.append(FakeEngine(config, seed, frame_bytes, trouble=trouble))
        return made[-1]

    settings = {
        "compile": False, "device": "cpu", "runs_dir": str(tmp_path), "total_frames": 900, "learn_start_steps": 60,
        "n_step": 2, "hidden": 16, "batch_size": 32, "evaluate_episodes": 2, "final_episodes": 3, "collectors": 2,
        "num_envs": 3, "chunk_steps": 4, "weights_every_steps": 60, **settings,
    }  # fmt: skip
    config = train.config_for(make_env).replace(game=name_of(make_env), **settings)
    clock = patch.object(engine, "Collectors", lambda *a, **k: Collectors(*a, clock=a[1].clock, **k))
    with patch.object(engine, "RayEngine", fake), clock:
        return train.dqn(make_env, config, callbacks, quiet=True)


@pytest.mark.parametrize("trouble", [PEACE, TROUBLE], ids=["peace", "trouble"])
@pytest.mark.parametrize("make_env", [make_next, make_same])
def test_every_row_of_a_collector_has_the_mask_of_its_observation(make_env, trouble, tmp_path):
    looks = Looks()  # an action that is not allowed raises in the collector, and ends the run
    run = train_on(make_env, tmp_path, [looks], trouble)
    assert looks.seen > 200
    assert run.learner.updates > 0
    assert run.policy.version > 0


def test_games_without_masks_send_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Doors, "__init__", lambda self: vars(self).update(masked=False, illegal=0))
    from masked_envs import make_doors

    run = train_on(make_doors, tmp_path, total_frames=300)
    assert "extra" not in run.buffer.settings
