"""The file format: chunks, metadata, frames, checksums.  Bytes in, bytes out; no torch.

``docs/format.md`` is the specification; the names here are its names.  Everything that is read
is bounded before it is allocated, and any damage is an ``OSError``; only a wrong signature is a
``SyntaxError``, which is how Pillow's plugins say "not mine".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import accumulate
from typing import IO

from pillow_lic.header import (
    ALPHA,
    FRAME,
    Animation,
    Header,
    read_varint,
    write_varint,
)
from pillow_lic.signature import SIGNATURE
from pillow_lic.warning import warn

VERSION = 1

HEAD, MODEL, ANIMATION = b"HEAD", b"modl", b"ANIM"
METADATA = {"exif": b"exif", "icc_profile": b"iccp", "xmp": b"xmpm", "comment": b"cmnt", "dpi": b"dpix"}

MAX_METADATA = 16 * 2**20
MAX_CHUNK = 2**31 - 1
MAX_NAME = 255
"""Bytes of a model's name."""

MAX_SCANS = 8
"""Scans of a progressive file."""

_PIECE = 2**20


@dataclass(frozen=True)
class Scans:
    """A tile of a progressive file: its first scans, as many as there are of ``count``."""

    count: int
    parts: list[bytes]

    def __len__(self) -> int:
        """Bytes of all of them."""
        return sum(map(len, self.parts))


Coded = bytes | Scans
"""A coded tile."""


@dataclass(frozen=True)
class Frame:
    """A frame's coded tiles in raster order, and its coded transparency if the mode has any.

    ``damaged``: the chunk is cut or fails its checksum, so that tiles may be cut, empty or another's.
    Transparency that fails its checksum is empty.
    """

    tiles: Sequence[Coded]
    alpha: bytes | None = None
    damaged: bool = False


def check_length(name: str, data: bytes) -> None:
    """``ValueError`` for metadata that no file has room for."""
    if len(data) > MAX_METADATA:
        raise ValueError(f"{name} has {len(data)} bytes; a LIC file takes at most {MAX_METADATA}")


def write(
    header: Header, metadata: Mapping[str, bytes], frames: Sequence[Frame], animation: Animation | None = None
) -> bytes:
    """A whole file; with several frames, ``animation`` tells how to show them."""
    parts = [SIGNATURE, bytes((VERSION,)), _chunk(HEAD, header.pack())]
    if header.model_name:
        parts.append(_chunk(MODEL, header.model_name.encode()[:MAX_NAME]))
    if animation is not None:
        parts.append(_chunk(ANIMATION, animation.pack()))
    for name, data in metadata.items():
        check_length(name, data)
        parts.append(_chunk(METADATA[name], _shrink(data)))
    for frame in frames:
        if frame.alpha is not None:
            parts.append(_chunk(ALPHA, frame.alpha))
        payload = _join(frame.tiles)
        if len(payload) > MAX_CHUNK:
            raise ValueError("the picture's data does not fit one frame of a LIC file (2 GiB)")
        parts.append(_chunk(FRAME, payload))
    return b"".join(parts)


class Reader:
    """Reads a file's chunks in order, each when it is asked for.

    The constructor reads signature and header, :meth:`metadata` what stands before the frames.
    Raises ``SyntaxError`` for another signature and ``OSError`` for damage.  With ``lenient`` set, metadata
    that fail their checksum are left out with a warning, and frames may be ``damaged``.
    """

    def __init__(self, fp: IO[bytes], *, lenient: bool = False) -> None:
        self._fp = fp
        self.lenient = lenient
        self.animation: Animation | None = None
        self._left_out: OSError | None = None
        self._places: list[int] = []
        if fp.read(len(SIGNATURE)) != SIGNATURE:
            raise SyntaxError("not a LIC file")
        version = _exactly(fp, 1)[0]
        if version != VERSION:
            raise OSError(f"this LIC file has format version {version}; this pillow-lic reads version {VERSION}")
        kind, length = self._next()
        if kind != HEAD or length > 64:
            raise OSError("damaged LIC file: it does not begin with a header")
        self.header = Header.unpack(self._payload(kind, length))

    def metadata(self) -> dict[str, bytes]:
        """What there is of EXIF, ICC profile, XMP, comment and resolution, ``animation`` and the header's
        ``model_name``; no frames yet.

        Comes before :meth:`frames` and :meth:`frame`.
        """
        names = {v: k for k, v in METADATA.items()}
        found: dict[str, bytes] = {}
        named = False
        while True:
            start = self._fp.tell()
            kind, length = self._next()
            if kind in (ALPHA, FRAME):
                if (self.header.frames > 1) != (self.animation is not None):
                    raise OSError("damaged LIC file: several frames and the animation chunk belong together")
                self._places = [start]
                return found
            if kind == ANIMATION and self.animation is None and length <= 5 * (self.header.frames + 1):
                self.animation = Animation.unpack(self._payload(kind, length), self.header.frames)
                continue
            if kind == ANIMATION:
                raise OSError("damaged LIC file: the ANIM chunk is too long or repeated")
            repeated = named if kind == MODEL else names.get(kind) in found
            if kind in (MODEL, *names) and (repeated or length > (MAX_NAME if kind == MODEL else MAX_METADATA + 1)):
                raise OSError(f"damaged LIC file: the {kind.decode()} chunk is too long or repeated")
            try:
                if kind == MODEL:
                    named = True
                    name = self._payload(kind, length).decode(errors="replace")
                    self.header = replace(self.header, model_name="".join(c if c.isprintable() else "?" for c in name))
                elif kind in names:
                    data = _grow(self._payload(kind, length))
                    if kind == METADATA["dpi"] and len(data) != 16:
                        raise OSError("damaged LIC file: the resolution is no two numbers")
                    found[names[kind]] = data
                else:
                    self._skip_unknown(kind, length)
            except OSError as error:
                if not self.lenient or kind[:1].isupper():
                    raise
                self._left_out = error
                warn(f"{error}; {names.get(kind, 'it')} is left out")

    def frames(self) -> Iterator[Frame]:
        """Each frame, its chunks checked against their checksums."""
        for index in range(self.header.frames):
            yield self.frame(index)

    def frame(self, index: int) -> Frame:
        """One frame, its chunks checked against their checksums; those before it are passed over."""
        while len(self._places) <= index:
            self._fp.seek(self._places[-1])
            self._next_frame(passing=True)
            self._places.append(self._fp.tell())
        self._fp.seek(self._places[index])
        frame = self._next_frame()
        if len(self._places) == index + 1:
            self._places.append(self._fp.tell())
        return frame

    def _next_frame(self, *, passing: bool = False) -> Frame:
        alpha = None
        while True:
            kind, length = self._next()
            if length > self.header.max_length.get(kind, MAX_CHUNK):
                raise OSError(
                    f"damaged LIC file: a {kind.decode()} chunk of {length} bytes is too long for the picture"
                )
            if passing and kind in (ALPHA, FRAME):
                self._fp.seek(length + 4, 1)
                if kind == FRAME:
                    return Frame([])
            elif kind == FRAME:
                if (alpha is not None) != self.header.has_alpha:
                    raise OSError("damaged LIC file: transparency is missing, or comes without being announced")
                payload, right = self._checked(kind, length)
                if self.header.progressive:
                    scans = _split_scans(payload, self.header.tiles, cut=len(payload) < length)
                    return Frame(scans, alpha, damaged=not right)
                return Frame(_split(payload, self.header.tiles, whole=right), alpha, damaged=not right)
            elif kind == ALPHA and alpha is None:
                payload, right = self._checked(kind, length)
                if right and not payload:
                    raise OSError("damaged LIC file: the transparency is empty")
                alpha = payload if right else b""
            elif kind in (ALPHA, MODEL, ANIMATION, *METADATA.values()):
                raise OSError(f"damaged LIC file: a {kind.decode()} chunk where none belongs")
            else:
                self._skip_unknown(kind, length)

    def hold(self) -> IO[bytes]:
        """Go on with a copy of the file in memory, and return it."""
        self._fp.seek(0)
        self._fp = BytesIO(self._fp.read())
        return self._fp

    def verify(self) -> None:
        """Compare every checksum without decoding; ``OSError`` if one is wrong."""
        self.lenient = False
        if self._left_out is not None:
            raise self._left_out
        for _ in self.frames():
            pass

    def _next(self) -> tuple[bytes, int]:
        kind = _exactly(self._fp, 4)
        if not kind.isalpha() or not kind.isascii():
            raise OSError("damaged LIC file: no chunk where one should begin")
        length = shift = 0
        while True:
            byte = _exactly(self._fp, 1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 28:
                raise OSError("damaged LIC file: a chunk's length is too large")
        if length > MAX_CHUNK:
            raise OSError("damaged LIC file: a chunk's length is too large")
        return kind, length

    def _payload(self, kind: bytes, length: int) -> bytes:
        payload = _exactly(self._fp, length)
        if _exactly(self._fp, 4) != _checksum(kind, payload):
            raise OSError(f"damaged LIC file: wrong checksum of the {kind.decode()} chunk")
        return payload

    def _checked(self, kind: bytes, length: int) -> tuple[bytes, bool]:
        """A payload, and whether it is right; only a lenient reader answers that it is not."""
        if not self.lenient:
            return self._payload(kind, length), True
        payload = _at_most(self._fp, length)
        return payload, _at_most(self._fp, 4) == _checksum(kind, payload)

    def _skip_unknown(self, kind: bytes, length: int) -> None:
        if kind[:1].isupper():
            raise OSError(f"this LIC file has a {kind.decode()} chunk, which needs a newer pillow-lic")
        checksum = zlib.crc32(kind)
        while length:  # in pieces: nobody needs to hold it
            piece = _exactly(self._fp, min(length, _PIECE))
            checksum = zlib.crc32(piece, checksum)
            length -= len(piece)
        if _exactly(self._fp, 4) != struct.pack("<I", checksum):
            raise OSError(f"damaged LIC file: wrong checksum of the {kind.decode()} chunk")


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + write_varint(len(payload)) + payload + _checksum(kind, payload)


def _checksum(kind: bytes, payload: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(payload, zlib.crc32(kind)))


def _exactly(fp: IO[bytes], count: int) -> bytes:
    data = _at_most(fp, count)
    if len(data) < count:
        raise OSError("truncated LIC file")
    return data


def _at_most(fp: IO[bytes], count: int) -> bytes:
    """``count`` bytes or what is left, read in pieces so that a false length allocates nothing large."""
    parts = []
    while count and (part := fp.read(min(count, _PIECE))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _join(tiles: Sequence[Coded]) -> bytes:
    """A frame's payload."""
    start, parts = b"", [t for t in tiles if isinstance(t, bytes)]
    if not parts:
        scans = [t for t in tiles if isinstance(t, Scans)]
        start, parts = bytes((scans[0].count,)), [part for scan in zip(*(t.parts for t in scans), strict=True)
                                                  for part in scan]  # fmt: skip
    return start + b"".join(write_varint(len(p)) for p in parts[:-1]) + b"".join(parts)


def _split_scans(payload: bytes, tiles: int, *, cut: bool) -> list[Scans]:
    """A progressive frame's tiles: the number of scans, then the first scan of every tile, the second of every
    tile and so on.  Of a payload that is cut, as many as are whole.
    """
    if not payload:
        raise OSError("truncated LIC file: its first scan is not whole")
    count = payload[0]
    if not 2 <= count <= MAX_SCANS:
        raise OSError("damaged LIC file: impossible number of scans")
    parts = _split(payload[1:], count * tiles, whole=not cut)
    if cut:
        ends = accumulate(map(len, parts))
        lengths = _lengths(payload[1:], count * tiles)[0]
        parts = parts[: sum(end == wanted for end, wanted in zip(ends, accumulate(lengths), strict=False))]
    if len(parts) < tiles:
        raise OSError("truncated LIC file: its first scan is not whole")
    return [Scans(count, parts[n::tiles]) for n in range(tiles)]


def _lengths(payload: bytes, count: int) -> tuple[list[int], int]:
    """The lengths of all but the last of so many pieces, and where the first begins."""
    if count - 1 > len(payload):
        raise OSError("damaged LIC file: fewer bytes than tiles")
    lengths, at = [], 0
    for _ in range(count - 1):
        length, at = read_varint(payload, at)
        lengths.append(length)
    return lengths, at


def _split(payload: bytes, count: int, *, whole: bool = True) -> list[bytes]:
    """A frame's tiles: all lengths but the last one's stand before them.  If not all of it is there, some are
    cut or empty.
    """
    lengths, at = _lengths(payload, count)
    if whole and at + sum(lengths) > len(payload):
        raise OSError("damaged LIC file: the tiles are longer than their frame")
    tiles = []
    for length in lengths:
        tiles.append(payload[at : at + length])
        at += length
    return [*tiles, payload[at:]]


def _shrink(data: bytes) -> bytes:
    packed = zlib.compress(data, 9)
    return b"\x01" + packed if len(packed) < len(data) else b"\x00" + data


def _grow(payload: bytes) -> bytes:
    if payload[:1] == b"\x00":
        return payload[1:]
    if payload[:1] != b"\x01":
        raise OSError("damaged LIC file: metadata packed in an unknown way")
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(payload[1:], MAX_METADATA + 1)
    except zlib.error as error:
        raise OSError(f"damaged LIC file: metadata do not unpack ({error})") from None
    if len(data) > MAX_METADATA or not unpacker.eof:
        raise OSError("damaged LIC file: metadata are too long or cut")
    return data
