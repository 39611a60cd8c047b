"""Makes the golden files of what the other scripts leave out anew: only for a new format version.

    python tests/golden/make_matrix.py [QUANTIZER ...]

The context over the volume of latents beside the lattice's model (which stays as it is); every quantiser with every
context in one piece and in scans; levels of quality with every quantiser; grey; and everything at once.  With
names of quantisers only what is theirs, beside the rest as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

PLAIN = ("lattice-none", "diamond-none", "bw16-none", "h24-none", "scalar-none")
"""One file of each quantiser: re-coding them is exact, so that what is made of them is the same on every machine."""


def main() -> None:
    """Freeze the context model, code the picture in every way, and record what comes back."""
    import torch
    from test_volume import volume

    import pillow_lic
    from pillow_lic.header import QUANTIZERS
    from pillow_lic.models.context.schedule import WHOLE
    from pillow_lic.models.loading import load_model
    from pillow_lic.training.export import write_volume

    pillow_lic.register_lic_opener()
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    if not wanted:
        owner = load_model(str(HERE / "lattice.safetensors"))
        write_volume(volume(), owner)
        owner.contexts["volume"] = WHOLE
    with Image.open(HERE.parent / "images" / "coffee.png") as image:
        picture = image.crop((60, 20, 157, 91))
    fade = Image.linear_gradient("L").resize(picture.size)
    coding = {"model": HERE / "lattice.safetensors", "quality": 6.2, "context": "none"}
    for quantizer in wanted or QUANTIZERS:
        picture.save(HERE / f"scans-{quantizer}-none.lic", quantizer=quantizer, progressive=True, **coding)
        picture.save(HERE / f"roi-{quantizer}.lic", quantizer=quantizer, tile=64, roi=fade, **coding)
    names = [name for q in wanted or QUANTIZERS for name in (f"scans-{q}-none", f"roi-{q}")]
    if not wanted:
        picture.save(HERE / "scalar-none.lic", quantizer="scalar", tile=64, **coding)
        picture.convert("L").save(HERE / "kind-grey.lic", quantizer="bw16", **coding | {"context": "volume"})
        everything(picture, fade)
        names += ["scalar-none", "kind-grey", "kind-everything"]
    recode()
    for name in names:
        with Image.open(HERE / f"{name}.lic") as image:
            image.seek(image.n_frames - 1)
            image.save(HERE / f"{name}.png", optimize=True)


def everything(picture: Image.Image, fade: Image.Image) -> None:
    """An animation with transparency and every kind of metadata, in tiles, scans and levels of quality."""
    exif = Image.Exif()
    exif[0x0112] = 6
    metadata = {"exif": exif, "xmp": b"<x/>" * 40, "icc_profile": bytes(range(64)), "comment": "so", "dpi": (300, 72)}
    seen = picture.convert("RGBA")
    seen.putalpha(fade)
    turned = [seen.transpose(Image.Transpose.ROTATE_180), seen.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    seen.save(HERE / "kind-everything.lic", save_all=True, append_images=turned, duration=[40, 0, 2**32 - 1], loop=3,
              roi=fade, progressive=True, tile=64, quality=5, model=HERE / "lattice.safetensors", quantizer="bw16",
              context="volume", **metadata)  # fmt: skip


def recode(folder: Path = HERE) -> None:
    """Code the files without a context with the others."""
    import pillow_lic
    from pillow_lic.header import CONTEXTS, QUANTIZERS

    wanted = [(name, "volume") for name in PLAIN]
    wanted += [(name, c) for name in ("scalar-none", *(f"scans-{q}-none" for q in QUANTIZERS)) for c in CONTEXTS[1:]]
    for name, context in wanted:
        data = pillow_lic.transcode((HERE / f"{name}.lic").read_bytes(), context)
        (folder / f"{name.removesuffix('none')}{context}.lic").write_bytes(data)


if __name__ == "__main__":
    main()
