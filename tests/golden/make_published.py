"""Makes the golden file of the published codecs anew: only for a new format version.

python tests/golden/make_published.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Import a small checkpoint, code, and record what comes back."""
    import pillow_lic
    from pillow_lic.training.compressai import import_checkpoints

    pillow_lic.register_lic_opener()
    checkpoint = HERE.parent / "published" / "mbt2018-3.pth.tar"
    import_checkpoints([checkpoint], "mbt2018", HERE / "published.safetensors", HERE.parent / "images")
    with Image.open(HERE.parent / "images" / "coffee.png") as image:
        image.crop((60, 20, 157, 111)).save(HERE / "published.lic", model=str(HERE / "published.safetensors"), tile=64)
    with Image.open(HERE / "published.lic") as image:
        image.save(HERE / "published.png", optimize=True)


if __name__ == "__main__":
    main()
