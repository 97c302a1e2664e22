"""The compiled kernels and their plain twins, each under one roof."""

from __future__ import annotations

from types import SimpleNamespace

from fastrl.replay import _frames, _ring, _sum_tree, reference


def _under_one_roof(frames, ring, tree):
    return SimpleNamespace(
        bad_index=tree.bad_index, bad_number=tree.bad_number,
        set_leaves=tree.set_leaves, find_leaves=tree.find_leaves, draw_leaves=tree.draw_leaves, Rings=ring.Rings,
        stack_numbers=frames.stack_numbers, n_step=frames.n_step, gather=frames.gather, gather_both=frames.gather_both,
    )  # fmt: skip


COMPILED = _under_one_roof(_frames, _ring, _sum_tree)
REFERENCE = _under_one_roof(reference, reference, reference)
