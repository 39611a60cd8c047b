"""Makes the golden files of every context model with the lattice, and of every kind: only for a new format version.

    python tests/golden/make_lattice.py

An untrained model whose context models say something all the same codes one picture with each.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    """Freeze the model, code the picture in every way, and record what comes back."""
    import torch
    from test_context import tiny_model

    import pillow_lic
    from pillow_lic.models.context.schedule import CONTEXTS
    from pillow_lic.training.export import write_model
    from pillow_lic.training.probabilities import make_tables

    pillow_lic.register_lic_opener()
    torch.set_num_threads(1)
    model = HERE / "lattice.safetensors"
    write_model(tiny_model(), model, make_tables())
    with Image.open(HERE.parent / "images" / "coffee.png") as image:
        picture = image.crop((60, 20, 157, 91))
    for name in ("none", *CONTEXTS):
        picture.save(HERE / f"lattice-{name}.lic", quality=6.2, model=model, context=name, tile=64)
    fade = Image.linear_gradient("L").resize(picture.size)
    picture.putalpha(fade)
    grey = picture.convert("LA")
    turned = [grey.transpose(Image.Transpose.ROTATE_180)]
    coding = {"quality": 5, "model": model}
    picture.save(HERE / "kind-alpha.lic", tile=64, **coding)
    grey.save(HERE / "kind-animation.lic", save_all=True, append_images=turned, duration=[40, 70], loop=3, **coding)
    picture.convert("RGB").save(HERE / "kind-roi.lic", roi=fade, **coding)
    for name in ("lattice-none", "kind-alpha", "kind-roi"):
        with Image.open(HERE / f"{name}.lic") as image:
            image.save(HERE / f"{name}.png", optimize=True)
    with Image.open(HERE / "kind-animation.lic") as image:
        image.seek(1)
        image.save(HERE / "kind-animation.png", optimize=True)


if __name__ == "__main__":
    main()
