"""What goes wrong when a model's file is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from pillow_lic.devices import is_no_memory, is_of_a_gpu

_STUMBLES = (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


class ModelError(OSError, ValueError):
    """A model's file is damaged or no model: an option's value was wrong, or a picture cannot be decoded."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a model's file is a :class:`ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except _STUMBLES as error:
        if is_no_memory(error):
            raise MemoryError(str(error)) from error
        if is_of_a_gpu(error):
            raise
        raise ModelError(f"{path} is damaged or not a pillow-lic model: {error}") from error


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor of that name; ``ValueError`` if a number of it is infinite or none."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} is not finite")
    return tensor
