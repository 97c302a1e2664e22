"""Stacks of frames, apart from any environment."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fastrl.envs.frame_stack import FrameStack


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack))])
def test_what_is_pushed_to_a_copy_does_not_reach_the_original(copied):
    stack = FrameStack(2, 3, (1,), np.uint8)
    stack.push(np.array([[1], [2]], np.uint8), np.array([True, True]))
    other = copied(stack)
    other.push(np.array([[7], [8]], np.uint8), np.array([False, True]))
    assert stack.state()["stacks"][..., 0].tolist() == [[1, 1, 1], [2, 2, 2]]
    assert other.state()["stacks"][..., 0].tolist() == [[1, 1, 7], [8, 8, 8]]
