"""Transparency that lies: PNG files with right checksums around wrong content."""

from __future__ import annotations

import struct
import zlib
from random import Random

from fuzz.cases import Chunk, assemble, noise, parse, scarred
from pillow_lic.header import ALPHA

PNG = b"\x89PNG\r\n\x1a\n"


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of these chunks."""
    return PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )


def hostile_png(width: int, height: int, rng: Random) -> bytes:
    """A PNG file that claims some size, and holds something else, or too much."""
    if rng.random() < 0.5:
        width, height = (rng.choice((0, 1, width, 2**15, 2**31 - 1, 2**32 - 1)) for _ in "wh")
    depth, colour = rng.choice(((8, 0), (1, 0), (16, 0), (8, 2), (8, 3), (8, 6), (3, 9)))
    pixels = zlib.compress(b"\0" * rng.choice((0, 10, (width + 1) * height % 2**20, 2**20)), 1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.choice((0, 0, 1)))),
        (rng.choice((b"zTXt", b"iTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf")), noise(rng)),
        (b"zTXt", b"a\0\0" + zlib.compress(b"\0" * rng.choice((9, 2**21)))),
        (b"IDAT", scarred(pixels, rng) if rng.random() < 0.5 else pixels),
        (rng.choice((b"IDAT", b"fdAT", b"IEND")), noise(rng)),
        (b"IEND", b""),
    ]
    kept = [c for c in chunks[1:] if rng.random() < 0.7]
    return png([chunks[0], *kept])


def with_other_transparency(data: bytes, size: tuple[int, int], rng: Random) -> bytes:
    """A right file with a hostile ALPH chunk."""
    chunks = parse(data)
    for chunk in chunks:
        if chunk.kind == ALPHA:
            chunk.payload = rng.choice((b"\x01", b"\x01", b"\x00", b"\x02")) + hostile_png(*size, rng)
    if rng.random() < 0.1:
        chunks.insert(1, Chunk(ALPHA, noise(rng)))
    return assemble(chunks)
