"""Makes the golden files of every context model with the lattice, and of every kind: only for a new format version.

    python tests/golden/make_lattice.py

The model and the picture are those of make_contexts.py.
"""

from __future__ import annotations

from make_contexts import HERE, shown, with_every_context
from PIL import Image


def main() -> None:
    """Code the picture in every way, and record what comes back."""
    model = HERE / "lattice.safetensors"
    picture = with_every_context("lattice", model)
    fade = Image.linear_gradient("L").resize(picture.size)
    picture.putalpha(fade)
    grey = picture.convert("LA")
    turned = [grey.transpose(Image.Transpose.ROTATE_180)]
    coding = {"quality": 5, "model": model}
    picture.save(HERE / "kind-alpha.lic", tile=64, **coding)
    grey.save(HERE / "kind-animation.lic", save_all=True, append_images=turned, duration=[40, 70], loop=3, **coding)
    picture.convert("RGB").save(HERE / "kind-roi.lic", roi=fade, **coding)
    shown("lattice-none", "kind-alpha", "kind-roi")
    with Image.open(HERE / "kind-animation.lic") as image:
        image.seek(1)
        image.save(HERE / "kind-animation.png", optimize=True)


if __name__ == "__main__":
    main()
