"""Several processes on one model: torch's DistributedDataParallel under ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn


def processes() -> int:
    """How many processes train together: what torchrun says, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them; 0 writes checkpoints, logs and results."""
    return int(os.environ.get("RANK", "0"))


def device_of(device: str) -> str:
    """The device of this process: each has a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


@contextmanager
def together(device: str) -> Iterator[None]:
    """Join the group of processes, if there is one, and leave it at the end."""
    if processes() == 1:
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def share_gradients(loss: nn.Module, device: torch.device) -> nn.Module:
    """The module whose gradients are averaged over all processes."""
    if processes() == 1:
        return loss
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(loss, device_ids=[device.index] if device.type == "cuda" else None)
