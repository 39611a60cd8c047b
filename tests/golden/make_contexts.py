"""Makes the context models' golden files anew: only for a new format version.

    python tests/golden/make_contexts.py

An untrained model whose context models say something all the same codes one picture with each.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def with_every_context(kind: str, model: Path, division: str = "sliced") -> Image.Image:
    """Freeze the model, and code a picture, which is returned, with each context model."""
    import torch
    from test_context import tiny_model

    import pillow_lic
    from pillow_lic.models.context.schedule import CONTEXTS
    from pillow_lic.training.export import write_model
    from pillow_lic.training.probabilities import make_tables

    pillow_lic.register_lic_opener()
    torch.set_num_threads(1)
    write_model(tiny_model(division), model, make_tables())
    with Image.open(HERE.parent / "images" / "coffee.png") as image:
        picture = image.crop((60, 20, 157, 91))
    for name in ("none", *CONTEXTS):
        picture.save(HERE / f"{kind}-{name}.lic", quality=6.2, model=model, context=name, tile=64)
    return picture


def shown(*names: str) -> None:
    """Record what files show."""
    for name in names:
        with Image.open(HERE / f"{name}.lic") as image:
            image.save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    with_every_context("context", HERE / "contexts.safetensors")
    shown("context-none")
