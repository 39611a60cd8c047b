"""What Pillow's plugins for lossy formats do, tried out: the table of docs/features.md.

    pip install pillow-heif pillow-jxl-plugin
    python examples/plugin_features.py

Every cell is what a plugin really did with a small photograph.  Plugins that are not installed are left out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageSequence, features

import pillow_lic  # noqa: F401

PHOTO = Path(__file__).resolve().parent.parent / "tests" / "images" / "astronaut.png"
FORMATS = {"LIC": ".lic", "HEIF": ".heic", "AVIF": ".avif", "WEBP": ".webp", "JXL": ".jxl"}
MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I;16",
    "I",
    "F",
]


def photo() -> Image.Image:
    """The picture that all is tried with."""
    return Image.open(PHOTO).convert("RGB").crop((32, 0, 160, 96))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file's bytes."""
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def again(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    """Saved and opened."""
    return Image.open(BytesIO(saved(image, kind, **options)))


def in_mode(mode: str) -> Image.Image:
    """The picture in a mode, by way of another where Pillow asks for one."""
    by = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    if mode in ("LAB", "I;16"):
        return Image.new(mode, (64, 64))
    return (photo().convert(by) if by else photo()).convert(mode)


def modes(kind: str) -> str:
    """What becomes of each mode."""
    found: dict[str, list[str]] = {}
    for mode in MODES:
        try:
            result = again(in_mode(mode), kind).mode
        except Exception:
            result = "refused"
        found.setdefault(result, []).append(mode)
    return "; ".join(f"{' '.join(given)} -> {result}" for result, given in found.items())


def alpha(kind: str) -> str:
    """Whether alpha comes back by default."""
    image = photo()
    image.putalpha(Image.effect_noise(image.size, 80))
    return _yes(np.array_equal(np.asarray(again(image, kind))[..., 3], np.asarray(image)[..., 3]))


def exif(kind: str) -> str:
    """What becomes of an Exif object and its orientation."""
    given = Image.Exif()
    given[ExifTags.Base.Orientation] = 6
    found = again(photo(), kind, exif=given).getexif().get(ExifTags.Base.Orientation)
    return f"yes, orientation {'kept' if found == 6 else f'becomes {found}'}"


def xmp(kind: str) -> str:
    """Whether XMP comes back."""
    return _yes(again(photo(), kind, xmp=b"<x/>").info.get("xmp") == b"<x/>")


def kept(kind: str) -> str:
    """What a second save keeps of itself."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    first = again(photo(), kind, icc_profile=profile, exif=Image.Exif().tobytes(), xmp=b"<x/>")
    return ", ".join(sorted({"exif", "icc_profile", "xmp"} & set(again(first, kind).info))) or "nothing"


def comment(kind: str) -> str:
    """Whether a comment and a resolution come back."""
    found = again(photo(), kind, comment=b"c", dpi=(72, 72)).info
    return ", ".join(sorted({"comment", "dpi"} & set(found))) or "no"


def unknown(kind: str) -> str:
    """What an option that does not exist does."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saved(photo(), kind, qualty=3)
    return "warns" if caught else "ignored in silence"


def frames(kind: str) -> str:
    """What comes back of three frames."""
    image = again(
        photo(), kind, save_all=True, append_images=[photo().rotate(90), photo()], duration=[30, 40, 50], loop=2
    )
    shown = [(frame.load(), frame.info.get("duration"))[1] for frame in ImageSequence.Iterator(image)]
    return (
        f"{len(shown)} frames, durations {'kept' if shown == [30, 40, 50] else 'lost'}, loop {image.info.get('loop')}"
    )


def draft(kind: str) -> str:
    """Whether draft() makes the picture smaller before it is decoded."""
    image = again(photo(), kind)
    image.draft(None, (32, 24))
    return _yes(image.size == (32, 24))


def damage(kind: str) -> str:
    """What a changed byte in the middle of the coded picture does."""
    data = bytearray(saved(photo(), kind))
    data[len(data) * 2 // 3] ^= 0xFF
    try:
        Image.open(BytesIO(data)).load()
    except Exception as error:
        return type(error).__name__
    return "a wrong picture"


def failure(kind: str) -> str:
    """What a failed save of an opened image does to a file that is there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{FORMATS[kind]}"
        path.write_bytes(saved(photo(), kind))
        before = path.read_bytes()
        with Image.open(path) as image, suppress(Exception):
            image.save(path, quality="high")
            return "accepts any quality"
        return "left as it was" if path.read_bytes() == before else "destroyed"


def threads(kind: str) -> str:
    """How many of forty loads fail when eight threads load one image, five times."""
    data, errors = saved(photo(), kind), []

    def load(image: Image.Image) -> None:
        try:
            image.load()
        except BaseException as error:
            errors.append(error)

    for _ in range(5):
        image = Image.open(BytesIO(data))
        workers = [threading.Thread(target=load, args=(image,)) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return f"{len(errors)} of 40 fail" if errors else "yes"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


PROBES: dict[str, Callable[[str], str]] = {
    "modes": modes, "alpha exact by default": alpha, "EXIF as an object": exif, "XMP": xmp,
    "kept by a second save": kept, "comment, dpi": comment, "unknown option": unknown, "three frames": frames,
    "draft(), thumbnail() decode less": draft, "a changed byte": damage,
    "failed save over a file": failure, "eight threads load one image": threads,
}  # fmt: skip


def try_out(kind: str, name: str) -> str:
    """A probe's result, or the error it ends with."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401
    try:
        return PROBES[name](kind)
    except Exception as error:
        return f"{type(error).__name__}"


def in_a_process(kind: str, name: str) -> str:
    """The same in a process of its own, which may hang or crash."""
    command = [sys.executable, __file__, kind, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "hangs"
    return done.stdout.strip() or f"crashes ({done.returncode})"


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(try_out(*sys.argv[1:3]))
        sys.exit()
    there = [k for k in FORMATS if k in ("HEIF", "JXL", "LIC") or features.check(k.lower())]
    print(f"| | {' | '.join(there)} |\n|{' --- |' * (len(there) + 1)}")
    for probe in PROBES:
        one = in_a_process if probe.startswith("eight") else try_out
        print(f"| {probe} | {' | '.join(one(kind, probe) for kind in there)} |", flush=True)
