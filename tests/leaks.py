"""What a process keeps after doing something many times: file handles and memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path


def grown(action: Callable[[], object], cycles: int) -> tuple[int, int]:
    """File handles and bytes of memory that ``cycles`` of an action leave behind; the first fifth warms up."""
    warm = cycles // 5
    for _ in range(warm):
        action()
    handles, memory = _handles(), _memory()
    for _ in range(cycles - warm):
        action()
    return _handles() - handles, _memory() - memory


def _handles() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _memory() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
