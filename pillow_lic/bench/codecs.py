"""The codecs that are compared, all through Pillow, each with its settings from small to large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image, features


@dataclass(frozen=True)
class Codec:
    """A Pillow format, the save option that is varied, its values, and the options that stay."""

    name: str
    format: str
    vary: str
    values: tuple[float, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, image: Image.Image, value: float) -> bytes:
        """The image as a file of this codec."""
        out = BytesIO()
        setting: Any = [value] if self.vary == "quality_layers" else value
        image.save(out, format=self.format, **{self.vary: setting}, **self.fixed)
        return out.getvalue()

    def describe(self) -> str:
        """Name and fixed options, for reports."""
        options = ", ".join(f"{k}={v}" for k, v in self.fixed.items())
        return f"{self.name} ({options})" if options else self.name


def decode(data: bytes) -> Image.Image:
    """Open a file and load its pixels."""
    image = Image.open(BytesIO(data))
    image.load()
    return image


LIC = Codec("LIC", "LIC", "quality", (1, 2, 3, 4, 5, 6, 7, 8))
JPEG = Codec("JPEG", "JPEG", "quality", (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95),
             {"optimize": True, "progressive": True})  # fmt: skip
WEBP = Codec("WebP", "WEBP", "quality", (1, 10, 25, 40, 55, 70, 80, 90, 97), {"method": 6})
AVIF = Codec("AVIF", "AVIF", "quality", (15, 25, 35, 45, 55, 65, 75, 85, 92), {"subsampling": "4:4:4", "speed": 6})
JPEG_2000 = Codec("JPEG 2000", "JPEG2000", "quality_layers", (120, 80, 50, 32, 20, 12, 8, 5),
                  {"quality_mode": "rates", "irreversible": True})  # fmt: skip
JPEG_XL = Codec("JPEG XL", "JXL", "quality", (15, 30, 45, 60, 70, 80, 88, 94))
HEIC = Codec("HEIC", "HEIF", "quality", (15, 25, 35, 45, 55, 65, 75, 85), {"subsampling": "4:4:4"})


def available() -> list[Codec]:
    """LIC and every other codec that this Pillow or an installed plugin can write."""
    for module in ("pillow_jxl", "pillow_heif"):
        try:
            plugin = __import__(module)
        except ImportError:
            continue
        if module == "pillow_heif":
            plugin.register_heif_opener()
    Image.init()
    found = [LIC, JPEG]
    found += [c for c, f in ((WEBP, "webp"), (AVIF, "avif"), (JPEG_2000, "jpg_2000")) if features.check(f)]
    return found + [c for c in (JPEG_XL, HEIC) if c.format in Image.SAVE]


def chosen(names: list[str] | None) -> list[Codec]:
    """The codecs of those names, LIC first; ``ValueError`` for one that is not available."""
    all_of_them = {c.name.lower().replace(" ", ""): c for c in available()}
    if not names:
        return list(all_of_them.values())
    wanted = ["lic", *(n for n in (name.lower().replace(" ", "") for name in names) if n != "lic")]
    for name in wanted:
        if name not in all_of_them:
            raise ValueError(f"no codec {name!r} here; there are: {', '.join(all_of_them)}")
    return [all_of_them[n] for n in wanted]
