"""Makes the golden files anew: only for a new format version, since old ones must decode for ever.

    python tests/golden/make.py

A tiny model is trained for a few steps and frozen here, so that the shipped one can improve.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    """Train, freeze, code, and record what comes back."""
    import torch

    import pillow_lic
    from pillow_lic.models.transforms import Architecture
    from pillow_lic.training import run
    from pillow_lic.training.recipe import Batches, Recipe, Schedule

    pillow_lic.register_lic_opener()
    torch.set_num_threads(1)
    run.TABLE_IMAGES = 30
    arch = Architecture(latents=64, analysis=(0, 0), synthesis=(1, 1), hyper_channels=16, hyperlatents=8)
    recipe = Recipe("golden", Schedule(steps=300, warmup_steps=20), arch, batches=Batches(64, 4))
    with tempfile.TemporaryDirectory() as folder:
        run.train(recipe, HERE.parent / "images", HERE / "golden.safetensors", Path(folder))
    model = str(HERE / "golden.safetensors")
    with Image.open(HERE.parent / "images" / "coffee.png") as image:
        colour = image.crop((60, 20, 157, 91))
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    colour.save(HERE / "colour.lic", quality=3.3, model=model, exif=exif, xmp=b"<x/>" * 40, icc_profile=None)
    colour.convert("L").save(HERE / "grey-tiled.lic", quality=6, model=model, tile=64)
    # Noise and hard edges at the highest quality: large symbols.
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    noise[:20] = 255 * (noise[:20] > 127)
    Image.fromarray(noise).save(HERE / "noise.lic", quality=8, model=model)
    for path in HERE.glob("*.lic"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
