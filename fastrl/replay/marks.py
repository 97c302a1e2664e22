"""The numbers that rings keep, for Python. `_marks.pxd` gives them to the kernels; a test compares the two."""

from __future__ import annotations

ROW, TRUNCATED, TERMINATED, FINAL = 0, 1, 2, 3
"""Marks of a row: ordinary; its episode ended by truncation, or by termination; it holds a final observation."""

UNKNOWN = 2
"""State of `Ring.opens`: the newest row is a final observation, but its frame was not given."""
