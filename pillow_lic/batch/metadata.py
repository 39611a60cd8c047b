"""What goes along when a picture changes its format: EXIF, ICC profile, XMP, comment, resolution, and frames."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from PIL import ExifTags, Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from pillow_lic.inputs import DAMAGED, loop_of, whole_exif
from pillow_lic.plugin import FORMAT

STILLS = frozenset({"MPO", "PSD"})
"""Formats whose further "frames" are previews, gain maps or layers; the first one is the picture."""

_TAGS = ExifTags.Base
DESCRIPTIVE = frozenset(
    {
        _TAGS.ImageDescription, _TAGS.Make, _TAGS.Model, _TAGS.Orientation, _TAGS.Software, _TAGS.DateTime,
        _TAGS.Artist, _TAGS.HostComputer, _TAGS.Copyright, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo,
    }
)  # fmt: skip
"""Tags of a TIFF directory that tell about the picture; the others tell where and how its pixels lie in that file."""

LARGEST_DPI = 2**31
"""Above this other formats have no number for a resolution."""

JPEG_ROOM = {"exif": 65533, "xmp": 65504, "comment": 65504}
"""Bytes of each that a segment of a JPEG file holds; more of them is an error of Pillow's, whose older versions have no
room for the last bytes of a comment.
"""

_DIRECTORIES = frozenset(map(int, (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)))
_XMP, _COMMENT = 700, int(_TAGS.ImageDescription)


def options_for(image: Image.Image, form: str) -> dict[str, Any]:
    """Save options that give a loaded image's metadata to a file in another format, as far as it has room for them.

    Colour profiles of .lic targets are left to the plugin, which knows whether colours are converted.
    """
    info = image.info
    found = {name: info[name] for name in ("icc_profile", "xmp") if info.get(name)}
    comment = info.get("comment") or info.get("Comment")
    if comment and isinstance(comment, (bytes, str)):
        found["comment"] = comment
    if (exif := _exif(image)) is not None:
        found["exif"] = exif
    if (dpi := _dpi(info)) is not None:
        found["dpi"] = dpi
    if form == FORMAT:
        found.pop("icc_profile", None)
    elif form == "PNG":
        found["pnginfo"] = _texts(found)
    elif form == "TIFF":
        found["exif"] = _directory(found)
    elif form in ("JPEG", "MPO"):
        if len(found.get("exif", b"")) > JPEG_ROOM["exif"]:
            found["exif"] = _upright(found["exif"])
        for name, most in JPEG_ROOM.items():
            if len(_bytes(found.get(name, b""))) > most:
                found[name] = b""  # not left out: Pillow takes the image's own comment then
    return found


def is_film(image: Image.Image) -> bool:
    """Whether an image's frames belong together."""
    return getattr(image, "is_animated", False) and image.format not in STILLS


def timing_for(image: Image.Image, form: str) -> dict[str, Any]:
    """Save options that give a film's frames, durations and loops to another format."""
    # A GIF that says nothing is played once.
    found: dict[str, Any] = {"save_all": True, "loop": loop_of(image, 1 if image.format == "GIF" else 0)}
    if form != FORMAT:
        durations = []
        for frame in ImageSequence.Iterator(image):
            if image.format != FORMAT:
                frame.load()  # before which some formats do not know
            durations.append(frame.info.get("duration", 0))
        found["duration"] = durations
    return found


def _exif(image: Image.Image) -> bytes | None:
    given = image.info.get("exif")
    if given and isinstance(given, bytes):  # a PNG's text may be called so
        return whole_exif(given)
    try:
        exif = image.getexif()
    except (*DAMAGED, TypeError):
        return None
    if image.format == "TIFF":
        whole, exif = exif, Image.Exif()
        for tag in sorted(DESCRIPTIVE.intersection(whole)):
            exif[tag] = whole.get_ifd(tag) if tag in _DIRECTORIES else whole[tag]
    return exif.tobytes() if exif else None


def _dpi(info: Mapping[Any, Any]) -> tuple[float, float] | None:
    """The resolution, unless it is no pair of positive numbers: TIFF files may divide by zero."""
    try:
        x, y = map(float, info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < LARGEST_DPI and 0 < y < LARGEST_DPI else None


def _texts(found: dict[str, Any]) -> PngInfo:
    """XMP and comment as PNG keeps them; takes them out of what is found."""
    texts = PngInfo()
    for keyword, name in (("XML:com.adobe.xmp", "xmp"), ("Comment", "comment")):
        if name in found:
            texts.add_itxt(keyword, _text(found.pop(name)))
    return texts


def _directory(found: dict[str, Any]) -> Image.Exif:
    """EXIF, XMP and comment as tags of a TIFF; takes them out of what is found."""
    exif = Image.Exif()
    with suppress(*DAMAGED):
        exif.load(found.pop("exif", b""))
    if "xmp" in found:
        exif[_XMP] = found.pop("xmp")
    comment = found.pop("comment", None)
    if comment and _COMMENT not in exif:
        # In bytes: Pillow writes text as ASCII.
        exif[_COMMENT] = _bytes(comment)
    return exif


def _upright(data: bytes) -> bytes:
    """Nothing of EXIF but which side is up, if it says so."""
    exif, whole = Image.Exif(), Image.Exif()
    with suppress(*DAMAGED):
        whole.load(data)
        if ExifTags.Base.Orientation in whole:
            exif[ExifTags.Base.Orientation] = whole[ExifTags.Base.Orientation]
    return exif.tobytes() if exif else b""


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8")
