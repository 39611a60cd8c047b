"""Hostile files by design: right checksums around wrong content, so that they get past the door.

Everything takes a ``random.Random``: a seeded one for runs that can be repeated, Hypothesis's, which shrinks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from pillow_lic import container
from pillow_lic.container import ANIMATION, HEAD, METADATA
from pillow_lic.header import ALPHA, CONTEXTS, FRAME, MODES, QUANTIZERS, Header, read_varint, write_varint
from pillow_lic.signature import SIGNATURE

KINDS = (HEAD, ANIMATION, ALPHA, FRAME, *METADATA.values(), b"newx", b"Newx", b"\0\0\0\0")

EDGES = (0, 1, 2, 63, 64, 127, 128, 255, 256, 1792, 1793, 2047, 2048, 2049, 4096, 16384, 16385, 65535, 65536, 65537,
         2**24 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**35 - 1)  # fmt: skip
"""Numbers at which something begins or ends."""


@dataclass
class Chunk:
    """A chunk; ``length`` and ``checksum`` are right unless they say otherwise."""

    kind: bytes
    payload: bytes
    length: int | None = None
    checksum: int | None = None

    def pack(self) -> bytes:
        """The chunk's bytes."""
        length = len(self.payload) if self.length is None else self.length
        checksum = zlib.crc32(self.payload, zlib.crc32(self.kind)) if self.checksum is None else self.checksum
        return self.kind + write_varint(length) + self.payload + struct.pack("<I", checksum)


def parse(data: bytes) -> list[Chunk]:
    """The chunks of a file, as far as they can be told apart."""
    chunks, at = [], 9
    while at + 5 <= len(data):
        kind = data[at : at + 4]
        try:
            length, start = read_varint(data, at + 4)
        except OSError:
            break
        chunks.append(Chunk(kind, data[start : start + length]))
        at = start + length + 4
    return chunks


def assemble(chunks: list[Chunk]) -> bytes:
    """A file of these chunks."""
    return SIGNATURE + bytes((container.VERSION,)) + b"".join(c.pack() for c in chunks)


def number(rng: Random) -> int:
    """A small number, one at an edge, or any of 35 bits."""
    return rng.choice((rng.randrange(300), rng.choice(EDGES), rng.getrandbits(35)))


def noise(rng: Random, most: int = 64) -> bytes:
    """Some bytes: any, all zeros, or all ones."""
    count = rng.randrange(most)
    return rng.choice((rng.randbytes(count), b"\0" * count, b"\xff" * count))


def scarred(data: bytes, rng: Random) -> bytes:
    """The data with a bit flipped, bytes replaced, removed, repeated or put in, or cut."""
    if not data:
        return noise(rng)
    at, span = rng.randrange(len(data)), rng.randrange(1, 9)
    match rng.randrange(6):
        case 0:
            return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
        case 1:
            return data[:at] + noise(rng, 9) + data[at + span :]
        case 2:
            return data[:at] + data[at + span :]
        case 3:
            return data[:at] + data[at : at + span] * rng.randrange(1, 5) + data[at:]
        case 4:
            return data[:at]
        case _:
            return data[:at] + noise(rng) + data[at:]


def hostile_header(rng: Random, model_id: bytes) -> bytes:
    """A HEAD payload, field by field, each of which may be impossible."""
    flags = rng.choice((0, 1, 2, 3, 32, 64, 65, 96, 128, 129, 192, rng.getrandbits(8)))
    coding = rng.choice((0, 4, 16, 20, 128, 148, rng.getrandbits(8)))
    sides = rng.choice(((number(rng), number(rng)), (rng.randrange(1, 200), rng.randrange(1, 200))))
    return b"".join(
        (
            *(write_varint(side) for side in sides),
            bytes((flags, coding)),
            model_id if rng.random() < 0.9 else rng.randbytes(8),
            struct.pack("<H", rng.choice((rng.randrange(1793), rng.getrandbits(16)))),
            write_varint(rng.choice((1, 2, 32, 33, number(rng)))) if flags & 64 else b"",
            write_varint(rng.choice((2, 3, 65536, number(rng)))) if flags & 128 else b"",
            noise(rng, 3) if rng.random() < 0.1 else b"",
        )
    )


def bomb(rng: Random) -> bytes:
    """Metadata that unpack to far more than they are."""
    size = rng.choice((100, 2**16, container.MAX_METADATA, container.MAX_METADATA + 1))
    return b"\x01" + scarred(zlib.compress(b"\0" * size, 1), rng) if rng.random() < 0.5 else noise(rng)


def from_nothing(rng: Random, model_id: bytes) -> bytes:
    """A file of any chunks in any order behind a header that may be right."""
    chunks = [Chunk(HEAD, hostile_header(rng, model_id))]
    for _ in range(rng.randrange(6)):
        kind = rng.choice(KINDS)
        payload = noise(rng)
        if kind == ANIMATION:
            payload = b"".join(write_varint(number(rng)) for _ in range(rng.randrange(6)))
        elif kind in METADATA.values() and rng.random() < 0.02:
            payload = bomb(rng)
        elif kind == FRAME and rng.random() < 0.5:
            payload = b"".join(write_varint(rng.randrange(40)) for _ in range(rng.randrange(9))) + payload
        chunks.append(Chunk(kind, payload))
    return assemble(chunks)


def with_header(chunks: list[Chunk], rng: Random) -> None:
    """Another header before the same chunks."""
    header = Header.unpack(chunks[0].payload)
    change = rng.choice(
        (
            {"width": rng.randrange(1, 300)},
            {"height": rng.randrange(1, 300)},
            {"mode": rng.choice(MODES)},
            {"context": rng.choice(CONTEXTS)},
            {"quantizer": rng.choice(QUANTIZERS)},
            {"quality_code": rng.randrange(1793)},
            {"tile": 64 * rng.randrange(33)},
            {"frames": rng.randrange(1, 6)},
            {"adaptive": not header.adaptive},
            {"progressive": not header.progressive},
        )
    )
    chunks[0].payload = replace(header, **change).pack()  # type: ignore[arg-type]


def with_other_payload(chunks: list[Chunk], rng: Random) -> None:
    """One chunk scarred, with a right checksum."""
    chunk = rng.choice(chunks)
    chunk.payload = scarred(chunk.payload, rng)


def with_other_order(chunks: list[Chunk], rng: Random) -> None:
    """A chunk removed, repeated, moved, renamed, or put in."""
    at, to = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    match rng.randrange(5):
        case 0:
            del chunks[at]
        case 1:
            chunks.insert(to, replace(chunks[at]))
        case 2:
            chunks[at], chunks[to] = chunks[to], chunks[at]
        case 3:
            chunks[at].kind = rng.choice(KINDS)
        case _:
            chunks.insert(to, Chunk(rng.choice(KINDS), bomb(rng) if rng.random() < 0.02 else noise(rng)))


def with_lies(chunks: list[Chunk], rng: Random) -> None:
    """A chunk whose length or checksum is wrong."""
    chunk = rng.choice(chunks)
    if rng.random() < 0.7:
        chunk.length = number(rng)
    else:
        chunk.checksum = rng.getrandbits(32)


MUTATIONS: tuple[Callable[[list[Chunk], Random], None], ...] = (
    with_header,
    with_other_payload,
    with_other_payload,
    with_other_order,
    with_lies,
)


def mutated(data: bytes, rng: Random) -> bytes:
    """A right file with one to three things wrong, behind right checksums unless these are what is wrong."""
    chunks = parse(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if chunks:
            try:
                rng.choice(MUTATIONS)(chunks, rng)
            except OSError:  # the header is hostile already
                continue
    out = assemble(chunks)
    return scarred(out, rng) if rng.random() < 0.1 else out


def with_other_tile(data: bytes, rng: Random) -> bytes:
    """A right file with one tile's stream, or one of its scans, scarred; all checksums outside it, and the frame's
    index, are right.
    """
    chunks = parse(data)
    header = Header.unpack(chunks[0].payload)
    frame = rng.choice([c for c in chunks if c.kind == FRAME])
    scans = frame.payload[:1] if header.progressive else b""
    tiles = container._split(frame.payload[len(scans) :], header.tiles * (scans[0] if scans else 1))
    n = rng.randrange(len(tiles))
    tiles[n] = tiles[n][:4] + scarred(tiles[n][4:], rng) if rng.random() < 0.95 else scarred(tiles[n], rng)
    frame.payload = scans + b"".join(write_varint(len(t)) for t in tiles[:-1]) + b"".join(tiles)
    return assemble(chunks)
