"""Makes the golden progressive file anew from the model and picture of the lattices': only for a new format version.

python tests/golden/make_progressive.py
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

import pillow_lic

HERE = Path(__file__).parent

if __name__ == "__main__":
    pillow_lic.register_lic_opener()
    with Image.open(HERE / "lattice-none.png") as image:
        data = BytesIO()
        image.save(data, "LIC", model=HERE / "lattice.safetensors", quality=8, quantizer="e8",
                   context="staircase", progressive=True)  # fmt: skip
    (HERE / "kind-progressive.lic").write_bytes(data.getvalue())
    with Image.open(data) as shown:
        shown.save(HERE / "kind-progressive.png")
