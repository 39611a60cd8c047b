"""Lets torch's CPU build import the registry's torchvision, once this module is imported.

That torchvision is built for CUDA, finds no operators of its own beside a CPU build, and then fails to describe
two of them, unless somebody has declared them.  CompressAI uses neither.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

with suppress(PackageNotFoundError):
    if torch.version.cuda is None and "+cpu" not in version("torchvision"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
