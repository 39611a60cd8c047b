"""Files beside a model: what was made for it afterwards, with the identity of the model it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pillow_lic import atomic
from pillow_lic.models.errors import finite, reading

T = TypeVar("T")


def save_beside(model: Path, suffix: str, identity: bytes, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in half precision beside their model."""
    halves = {name: value.detach().half() for name, value in tensors.items()}
    # Not save_file, which makes files that only their owner can read.
    atomic.write(str(model.with_suffix(suffix)), save(halves, {"model": identity.hex()}))


def load_beside(model: Path, suffix: str, identity: bytes, make: Callable[[dict[str, Tensor]], T]) -> T | None:
    """What is made of the float32 tensors beside a model; None if there are none or they are another model's.

    Raises ``ModelError`` if they are damaged or nothing can be made of them.
    """
    path = model.with_suffix(suffix)
    if not path.is_file():
        return None
    with reading(path), safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("model") != identity.hex():
            return None
        return make({name: finite(name, file.get_tensor(name).float()) for name in file.keys()})  # noqa: SIM118
