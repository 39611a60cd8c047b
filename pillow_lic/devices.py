"""Where networks run, and in which precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from pillow_lic import options

WORTH_CUDA = 256 * 256
"""Pixels from which a transfer to the GPU pays."""


@contextmanager
def quiet(device: torch.device, threads: int | None = None) -> Iterator[None]:
    """No gradients, no autocast and at most so many threads, whatever the caller has set; all is put back after."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def choose_device(name: str | None, pixels: int) -> torch.device:
    """The device to work on; ``ValueError`` if it does not exist."""
    name = name or options.defaults.device or os.environ.get("PILLOW_LIC_DEVICE") or None
    if name is None:
        # A forked child cannot use the CUDA of its parent, and nobody asked for it by name.
        usable = pixels >= WORTH_CUDA and torch.cuda.is_available() and not torch.cuda._is_in_bad_fork()
        return torch.device("cuda" if usable else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} does not exist here; this torch sees {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {name!r}")
    return device


@cache
def block_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32.

    PILLOW_LIC_PRECISION=float32 or bfloat16 decides otherwise.
    """
    wanted = os.environ.get("PILLOW_LIC_PRECISION")
    if wanted in ("float32", "bfloat16"):
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = known.get("avx512_bf16") or known.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32
