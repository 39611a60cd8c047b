"""Every byte of small files of every kind flipped in turn, and the files cut at every length: what becomes of each.

python -m fuzz.damage [NAME …]     (in tests/): a table of outcomes, strict and with LOAD_TRUNCATED_IMAGES
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from itertools import islice, product

import numpy as np
from PIL import Image, ImageFile

from fuzz.seeds import seeds, use_golden_models
from pillow_lic.codec import decode
from pillow_lic.container import Reader, Scans

FLIPS = (0xFF, 0x01, 0x20)
"""All bits, the lowest, and the one that makes letters small."""

GREY, OPAQUE = 128, 255


def damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Each damage in turn: what was done, and the file."""
    for position in range(len(data)):
        for flip in FLIPS:
            yield "flipped", data[:position] + bytes((data[position] ^ flip,)) + data[position + 1 :]
    for length in range(len(data)):
        yield "cut", data[:length]


def frames_of(data: bytes) -> list[np.ndarray]:
    """Every frame, (H, W, …)."""
    with Image.open(BytesIO(data)) as image:
        frames = []
        for n in range(image.n_frames):
            image.seek(n)
            frames.append(np.array(image))
    return frames


def from_fewer_scans(data: bytes) -> list[list[np.ndarray]]:
    """Of each frame of a progressive file the pictures from ever fewer of its scans, down to the first."""
    reader = Reader(BytesIO(data))
    reader.metadata()
    fewer = []
    for frame in reader.frames() if reader.header.progressive else ():
        scans = [tile for tile in frame.tiles if isinstance(tile, Scans)]
        fewer.append([
            decode(reader.header, replace(frame, tiles=[replace(tile, parts=tile.parts[:count]) for tile in scans]))
            for count in range(scans[0].count - 1, 0, -1)
        ])  # fmt: skip
    return fewer


def outcome(data: bytes, right: list[np.ndarray], fewer: list[list[np.ndarray]], tile: int) -> str:
    """``error``; ``right``: the pictures are, whatever is said of metadata; ``part``: what is shown of a picture is
    right, tile by tile, or what ``fewer`` of its scans give, and a warning tells that it is a part; ``WRONG`` if
    anything else is shown.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = frames_of(data)
        except OSError:
            return "error"
    if len(found) == len(right) and all(map(np.array_equal, found, right)):
        return "right"
    if not any("damaged LIC file" in str(w.message) for w in said):
        return "WRONG"
    if len(found) != len(right):
        return "WRONG"
    pictures = [[one, *less] for one, less in zip(right, fewer or [[]] * len(right), strict=True)]
    return "part" if all(_part_of(f, r, tile) for f, r in zip(found, pictures, strict=True)) else "WRONG"


def _part_of(found: np.ndarray, pictures: list[np.ndarray], tile: int) -> bool:
    """Whether every tile is one of the pictures' or grey, and transparency is right or left out."""
    right = pictures[0]
    if found.shape != right.shape:
        return False
    colours = found.shape[2] - 1 if found.ndim == 3 and found.shape[2] in (2, 4) else None
    if colours:
        alpha = found[..., colours]
        if not (np.array_equal(alpha, right[..., colours]) or (alpha == OPAQUE).all()):
            return False
        found, pictures = found[..., :colours], [picture[..., :colours] for picture in pictures]
    height, width = found.shape[:2]
    side = tile or max(height, width)
    for top, left in product(range(0, height, side), range(0, width, side)):
        here = np.s_[top : top + side, left : left + side]
        known = any(np.array_equal(found[here], picture[here]) for picture in pictures)
        if not known and not (found[here] == GREY).all():
            return False
    return True


def count(name: str, *, lenient: bool, every: int = 1) -> Counter[tuple[str, str]]:
    """How many of a file's damages, or of every so manieth, had which outcome."""
    data = seeds()[name]
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, lenient
    try:
        right, fewer, tile = frames_of(data), from_fewer_scans(data), Reader(BytesIO(data)).header.tile
        return Counter(
            (done, outcome(case, right, fewer, tile)) for done, case in islice(damaged(data), 0, None, every)
        )
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def main() -> int:
    """Print the table."""
    use_golden_models()
    total: Counter[tuple[bool, str, str]] = Counter()
    for name in sys.argv[1:] or seeds():
        for lenient in (False, True):
            found = count(name, lenient=lenient)
            total.update({(lenient, *key): n for key, n in found.items()})
            told = ", ".join(f"{done} {what} {n}" for (done, what), n in sorted(found.items()))
            print(f"{name:<24} {'lenient' if lenient else 'strict':<8} {told}", flush=True)
    for key, n in sorted(total.items()):
        print("all, lenient" if key[0] else "all, strict", *key[1:], n)
    return int(any(what == "WRONG" for _, _, what in total))


if __name__ == "__main__":
    sys.exit(main())
