"""What a save call gives, in the form that the codec takes: pixels, frames, durations, a mask, metadata.

Both plugins use it, and neither may import torch or NumPy before something is coded.
"""

from __future__ import annotations

import math
import struct
from itertools import accumulate, pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageSequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

DAMAGED = (SyntaxError, struct.error, ValueError, KeyError, OSError)
"""What Pillow raises for EXIF data that are none."""

FOREIGN_PROFILES = {"L": (b"CMYK", b"Lab "), "RGB": (b"CMYK", b"Lab ", b"GRAY")}
"""Colour spaces of ICC profiles that no picture in a mode can have; they are in bytes 16 to 20 (ICC.1, 7.2.6)."""


NO_EXIF = (b"MM\0*\0\0\0\x08" + bytes(6), b"II*\0\x08\0\0\0" + bytes(6))
"""EXIF without a tag, as ``getexif()`` of an image without any gives it."""


def check_pixels(array: NDArray[np.generic]) -> str:
    """The mode of an array of pixels: "L" for (H, W), "LA", "RGB", "RGBA" for (H, W, 2 to 4).

    Raises ``TypeError`` for other types than uint8 and ``ValueError`` for other shapes or an
    empty picture.
    """
    if array.dtype != "uint8":
        raise TypeError(f"LIC takes 8-bit pixels (uint8), not {array.dtype}; scale and convert them first")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (2, 3, 4))):
        raise ValueError(f"LIC takes arrays of shape (H, W) or (H, W, 2 to 4), not {array.shape}")
    if 0 in array.shape:
        raise ValueError("cannot write an empty picture as LIC")
    return "L" if array.ndim == 2 else ("LA", "RGB", "RGBA")[array.shape[2] - 2]


def mask_from(roi: Any, im: Image.Image) -> Image.Image | None:
    """A mask of the image's size in mode L from an image, an array, or a function of the image that gives one.

    Raises ``TypeError`` for anything else, masks of more than 8 bits too, and ``ValueError`` for another size.
    """
    found = roi(im) if callable(roi) else roi
    if found is None:
        return None
    if not isinstance(found, Image.Image):
        try:
            found = Image.fromarray(found)
        except (TypeError, AttributeError, KeyError):
            kind = f"one of {found.dtype} {found.shape}" if hasattr(found, "dtype") else type(found).__name__
            raise TypeError(f"roi must be an image or an 8-bit array (H, W), not {kind}") from None
    if has_more_than_8_bits(found):  # whose 0...1 would become black
        raise TypeError(f"roi must have 8 bits a pixel, not mode {found.mode}; scale its values to 0...255")
    if found.size != im.size:
        raise ValueError(f"roi has {found.width}x{found.height} pixels, the image {im.width}x{im.height}")
    return found if found.mode == "L" else found.convert("L")


def frames_of(images: Sequence[Image.Image], duration: Any) -> tuple[list[Image.Image], list[float]]:
    """Every frame of some images in one mode, and how long to show each, in milliseconds.

    ``duration``: of all, of each, or None for what the images say.  Raises ``ValueError`` if frames
    differ in size or durations are too few.
    """
    frames: list[Image.Image] = []
    times: list[float] = []
    for image in images:
        before = image.tell()
        try:
            for frame in ImageSequence.Iterator(image):
                frame.load()
                said = frame.info.get("duration")
                times.append(float(said) if isinstance(said, Real) else 0.0)
                supported = in_supported_mode(frame)
                frames.append(supported.copy() if supported is frame else supported)
        finally:
            image.seek(before)
    if any(frame.size != frames[0].size for frame in frames):
        raise ValueError("all frames of a LIC file must have the same size")
    if duration is not None:
        times = times_of(duration, len(frames))
    modes = {frame.mode for frame in frames}
    colour = "RGB" if any(m.startswith("RGB") for m in modes) else "L"
    mode = colour + ("A" if any(m.endswith("A") for m in modes) else "")
    return [frame if frame.mode == mode else frame.convert(mode) for frame in frames], times


def times_of(duration: Any, frames: int) -> list[float]:
    """How long to show each of so many frames, from one number for all or one for each.

    Raises ``ValueError`` if there are too few or too many, or one is out of range;
    ``TypeError`` for anything but numbers.
    """
    given = [duration] * frames if isinstance(duration, Real) else list(duration)
    if not all(isinstance(time, Real) for time in given):
        raise TypeError(f"duration must be a number or one for each frame, not {duration!r}")
    if len(given) != frames:
        raise ValueError(f"duration names {len(given)} frames, but there are {frames}")
    times = [float(time) for time in given]
    if not all(0 <= time < 2**32 for time in times):
        raise ValueError(f"durations must lie in 0 ... 2**32 - 1 milliseconds, not {duration!r}")
    return times


def whole_times(times: Iterable[float]) -> tuple[int, ...]:
    """Times in whole milliseconds that do not drift from those given: ends are rounded, not durations."""
    ends = [round(end) for end in accumulate(times, initial=0.0)]
    return tuple(end - start for start, end in pairwise(ends))


def has_more_than_8_bits(im: Image.Image) -> bool:
    """Whether an image's mode has more than eight bits a channel."""
    return im.mode in ("I", "F") or im.mode.startswith("I;16")


def in_supported_mode(im: Image.Image) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA, whichever holds all it has in 8 bits a channel.

    Raises ``OSError`` for modes with more bits and for LAB.
    """
    if has_more_than_8_bits(im):
        raise OSError(f'cannot write mode {im.mode} as LIC; scale its values to 0...255 and use im.convert("L")')
    if im.mode == "LAB":
        raise OSError('cannot write mode LAB as LIC; use ImageCms.profileToProfile to make it "RGB"')
    grey = im.mode in ("1", "L", "LA", "La")
    wanted = ("L" if grey else "RGB") + ("A" if im.has_transparency_data or im.mode in ("La", "RGBa") else "")
    return im if im.mode == wanted else im.convert(wanted)


def inherited_from(im: Image.Image, mode: str) -> dict[str, Any]:
    """What an image's own info gives to a file that is written in some mode."""
    found = {name: im.info[name] for name in ("icc_profile", "comment") if im.info.get(name)}
    if not isinstance(found.get("icc_profile", b""), bytes):  # a PNG's text may have any name
        del found["icc_profile"]
    return without_foreign(found, im, mode)


def without_foreign(given: Mapping[str, Any], im: Image.Image, mode: str) -> dict[str, Any]:
    """Options without the image's own profile where it is of colours that a file in some mode does not have."""
    own = given.get("icc_profile")
    foreign = isinstance(own, bytes) and own[16:20] in FOREIGN_PROFILES[mode.removesuffix("A")]
    return {k: v for k, v in given.items() if k != "icc_profile" or not foreign or own != im.info.get("icc_profile")}


def loop_of(im: Image.Image, default: int = 0) -> int:
    """How often an image says that its frames are played; a PNG's text may have that name, too."""
    said = im.info.get("loop", default)
    return int(said) if isinstance(said, Integral) and 0 <= int(said) < 2**32 else default


def whole_exif(data: bytes) -> bytes:
    """EXIF with the six bytes before it that WebP and AVIF files may lack, and JPEG files must not."""
    return b"Exif\0\0" + data if data[:2] in (b"II", b"MM") else data


def metadata_from(options: Mapping[str, Any]) -> dict[str, bytes]:
    """EXIF (bytes or ``Image.Exif``), ICC profile, XMP, comment (bytes or text) and dpi (two numbers) among
    save options, as bytes.

    Raises ``TypeError`` for values of another kind and ``ValueError`` for those that are too long.
    """
    from pillow_lic import container

    found = {name: options.get(name) for name in container.METADATA}
    if isinstance(found["exif"], Image.Exif):
        data = found["exif"].tobytes()
        found["exif"] = None if data[6:] in NO_EXIF else data
    for name in ("xmp", "comment"):
        if isinstance(text := found[name], str):
            found[name] = text.encode("utf-8")
    if found["dpi"] is not None:
        try:
            found["dpi"] = struct.pack("<2d", *found["dpi"])
        except (struct.error, TypeError):
            raise TypeError(f"dpi must be two numbers, not {found['dpi']!r}") from None
    for name, value in found.items():
        if isinstance(value, str) and not value:
            found[name] = None  # as Pillow's other plugins take it
        elif value is not None and not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"{name} must be bytes, not {type(value).__name__}")
    given = {name: bytes(value) for name, value in found.items() if value}
    if "exif" in given:
        given["exif"] = whole_exif(given["exif"])
    for name, value in given.items():
        container.check_length(name, value)
    return given


def shown_metadata(metadata: Mapping[str, bytes]) -> dict[str, Any]:
    """A file's metadata as ``im.info`` has them: dpi as two numbers, the rest in bytes."""
    found: dict[str, Any] = dict(metadata)
    if len(dpi := found.pop("dpi", b"")) == 16:
        both = struct.unpack("<2d", dpi)
        if all(0 < value < math.inf for value in both):  # what other formats can write
            found["dpi"] = both
    return found
