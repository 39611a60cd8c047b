"""Small right files of every kind, from the golden model with the lattice, which decodes one in about a millisecond."""

from __future__ import annotations

import os
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from pillow_lic.header import QUANTIZERS
from pillow_lic.models.loading import load_model

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
MODEL = str(GOLDEN / "lattice.safetensors")
OTHERS = {name: str(GOLDEN / f"{name}.safetensors") for name in ("divided", "hyper")}
"""Models whose context models have interleaved groups of channels, or that have one of z."""


def use_golden_models() -> None:
    """Make this process find the models that the seeds are coded with."""
    os.environ["PILLOW_LIC_MODELS"] = str(GOLDEN)


@cache
def seeds() -> dict[str, bytes]:
    """Files by name: every context with every quantiser, and every other thing that a file may have."""
    with Image.open(HERE.parent / "images" / "coffee.png") as image:
        picture = image.crop((60, 20, 93, 45))
        wide = image.crop((20, 20, 150, 60))
    seen = picture.copy()
    seen.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    everything = {"exif": exif, "xmp": b"<x/>" * 20, "icc_profile": b"icc" * 9, "comment": "so", "dpi": (300, 72)}
    contexts = ("none", *load_model(MODEL).contexts)
    made = {f"{c}-{q}": _save(picture, context=c, quantizer=q) for c in contexts for q in QUANTIZERS}
    for name, model in OTHERS.items():
        contexts = ("none", *load_model(model).contexts)
        made |= {f"{name}-{c}": _save(picture, model=model, context=c, quantizer="h24") for c in contexts}
    return made | {
        "grey": _save(picture.convert("L")),
        "alpha": _save(seen),
        "alpha-even": _save(seen.convert("LA"), alpha_quality=0),
        "tiled": _save(wide, tile=64),
        "tiled-staircase": _save(wide, tile=64, context="staircase"),
        "progressive": _save(wide, tile=64, progressive=True, quality=6),
        "roi": _save(wide, tile=64, roi=Image.linear_gradient("L").resize(wide.size)),
        "metadata": _save(picture, **everything),
        "animation": _save(
            picture, save_all=True, append_images=[picture.rotate(180)] * 2, duration=[1, 2, 300], loop=9
        ),
        "everything": _save(
            wide.convert("RGBA"), save_all=True, append_images=[wide.rotate(180)], tile=64, duration=20, **everything
        ),
    }


def _save(picture: Image.Image, **options: object) -> bytes:
    out = BytesIO()
    picture.save(out, "LIC", **({"model": MODEL, "quality": 3, "context": "none"} | options))
    return out.getvalue()
