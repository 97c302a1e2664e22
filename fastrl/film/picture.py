"""Pictures: what they are, and how frames become some."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import at_least

Picture = npt.NDArray[np.uint8]
"""[H, W, 3] uint8, red, green, blue."""


def upscale(frame: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Return [H, W, ...] enlarged to [H * factor, W * factor, ...] by repeating pixels."""
    at_least(1, factor=factor)
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def frame_to_rgb(frame: npt.NDArray[Any], min_height: int = 160) -> Picture:
    """Return a picture of a frame that the agent sees, for games without a screen.

    Parameters
    ----------
    frame : [H, W] or [H, W, 3]
        uint8, or floats from 0 (black) to 1 (white).
    min_height : int
        Smaller frames are enlarged by a whole factor to at least this height or just below it.

    Returns
    -------
    picture : [H * factor, W * factor, 3] uint8
    """
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3):
        raise ValueError(f"frame has shape {frame.shape}; give [H, W] or [H, W, 3]")
    if frame.dtype != np.uint8:
        frame = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
    if frame.ndim == 2:
        frame = np.repeat(frame[:, :, None], 3, axis=2)
    return upscale(frame, max(1, min_height // frame.shape[0]))
