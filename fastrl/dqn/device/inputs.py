"""Memory that compiled functions read, made once and filled again for every call."""

from __future__ import annotations

import torch
from torch import Tensor


def make_input(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of zeros for `fill`.

    Images of uint8 stay uint8 on a GPU, where the network scales them. A CPU gets them as the network would make
    them, float32 in channels-last order: what torch.compile writes for that takes three times as long as `fill`.
    """
    if device.type == "cpu" and dtype == torch.uint8 and len(shape) == 4:
        return torch.zeros(shape, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    return torch.zeros(shape, dtype=dtype, device=device)


def fill(into: Tensor, value: Tensor) -> None:
    """Copy values into an input made by `make_input`, scaling images to [0, 1] where it holds floats."""
    if into.dim() == 4 and into.is_floating_point() and value.dtype == torch.uint8:
        for channel in range(into.shape[1]):  # a copy of all channels at once is not vectorised
            torch.div(value[:, channel], 255, out=into[:, channel])
    else:
        into.copy_(value)
