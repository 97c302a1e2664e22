"""The compiled kernels and their plain twins, each under one roof."""

from __future__ import annotations

from types import SimpleNamespace

from fastrl.replay import _draw, _frames, _ring, _sequences, _sum_tree, reference


def _under_one_roof(tree, ring, draw, sequences, frames):
    return SimpleNamespace(
        bad_index=tree.bad_index, bad_number=tree.bad_number,
        set_leaves=tree.set_leaves, find_leaves=tree.find_leaves, draw_leaves=tree.draw_leaves, Rings=ring.Rings,
        Drawer=draw.Drawer, Stretches=sequences.Stretches, gather=frames.gather, gather_both=frames.gather_both,
    )  # fmt: skip


COMPILED = _under_one_roof(_sum_tree, _ring, _draw, _sequences, _frames)
REFERENCE = _under_one_roof(*[reference] * 5)
