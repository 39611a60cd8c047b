"""Makes the golden files of the quantisers diamond, bw16 and h24 anew: only for a new format version.

    python tests/golden/make_quantizers.py [QUANTIZER ...]

The model is that of the lattice's files, as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Code the picture with every context, and record what comes back."""
    import torch

    import pillow_lic
    from pillow_lic.models.context.schedule import CONTEXTS

    pillow_lic.register_lic_opener()
    torch.set_num_threads(1)
    with Image.open(HERE.parent / "images" / "coffee.png") as image:
        picture = image.crop((60, 20, 157, 91))
    options = {"quality": 6.2, "model": HERE / "lattice.safetensors", "tile": 64}
    for quantizer in sys.argv[1:] or ("diamond", "bw16", "h24"):
        for name in ("none", *CONTEXTS):
            picture.save(HERE / f"{quantizer}-{name}.lic", context=name, quantizer=quantizer, **options)
        with Image.open(HERE / f"{quantizer}-none.lic") as image:
            image.save(HERE / f"{quantizer}-none.png", optimize=True)


if __name__ == "__main__":
    main()
