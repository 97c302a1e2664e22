"""Where the network runs, and what that device can do."""

from __future__ import annotations

import sys

import torch

from fastrl.base.errors import ConfigError
from fastrl.base.launch import launched
from fastrl.config import check_device


def pick_device(name: str) -> torch.device:
    """Return the device of `--device`: "cpu", "cuda", or for "auto" a GPU where there is one.

    Of several learners on one machine each has the GPU of its own number. The number is named, since a new thread
    begins on GPU 0 whatever the thread that made it uses.

    Raises
    ------
    ConfigError
        There is no usable GPU, or no such device.
    """
    check_device(name)
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise ConfigError(
            "--device is 'cuda' but PyTorch finds no usable GPU; give --device cpu, or install PyTorch for CUDA"
        )
    if not usable or name == "cpu":
        return torch.device("cpu")
    launch = launched()
    return torch.device("cuda", launch.local_rank) if launch and launch.local_count > 1 else torch.device("cuda")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, rather than emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if hasattr(torch.cpu, "get_capabilities"):  # newer than torch 2.6
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def pick_precision(asked: str, device: torch.device) -> str:
    """Return the precision that a setting asks for: of "auto", "bfloat16" where the device has it, else "float32"."""
    if asked != "auto":
        return asked
    return "bfloat16" if has_bfloat16(device) else "float32"


def gpu_free_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU's memory."""
    return torch.cuda.mem_get_info(device)[0]


def forget_compiled() -> None:
    """Forget what torch.compile made in this process: it keeps eight versions of a function, and refuses the ninth."""
    if "torch._dynamo" in sys.modules:  # which takes seconds to import
        torch.compiler.reset()
