"""What a file says of its picture before the first symbol: the header, and how frames are shown.

``docs/format.md`` is the specification; the names here are its names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from numbers import Integral

ALPHA, FRAME = b"ALPH", b"FRAM"
"""The chunks of a frame."""

MODES = ("L", "RGB", "LA", "RGBA")
CONTEXTS = ("none", "checkerboard", "channel", "autoregressive", "staircase", "volume")
QUANTIZERS = ("scalar", "e8", "diamond", "bw16", "h24")

MAX_SIDE = 2**24
QUALITY_ONE = 256
"""Quality codes for one step of quality."""

MAX_QUALITY_CODE = 7 * QUALITY_ONE
MAX_FRAMES = 2**16
TILE_UNIT = 64
"""Tile sides are multiples of this many pixels: one hyperlatent position."""

MAX_TILE = 2048
MAX_TILE_POSITIONS = (MAX_TILE // 16) ** 2
"""Latent positions of a tile: what a decoder works on at once, in up to 650 MB."""

MAX_POSITION_BYTES = 8192
"""Coded data of a latent position, above what any model can need: 768 latents of 43 bits and 512 hyperlatents."""

_SPARE = 2**16
_PROGRESSIVE, _TILED, _MANY = 32, 64, 128
_ADAPTIVE = 128


@dataclass(frozen=True)
class Header:
    """What ``Image.open`` needs to know, and what the decoder needs before the first symbol.

    ``tile`` is the side of the tiles in pixels, 0 if every frame is one tile; ``adaptive``: whether
    tiles have levels of quality; ``progressive``: whether they come in scans.  ``model_name`` is there for people,
    in a chunk of its own after this one.
    """

    width: int
    height: int
    mode: str
    model_id: bytes
    quality_code: int
    context: str = "none"
    quantizer: str = "scalar"
    tile: int = 0
    frames: int = 1
    adaptive: bool = False
    model_name: str = ""
    progressive: bool = False

    @property
    def has_alpha(self) -> bool:
        """Whether each frame has transparency beside its tiles."""
        return self.mode.endswith("A")

    @property
    def tiles(self) -> int:
        """Tiles of a frame."""
        if not self.tile:
            return 1
        return -(-self.width // self.tile) * -(-self.height // self.tile)

    @property
    def max_length(self) -> dict[bytes, int]:
        """How long the chunks of a frame may be, by type: in proportion to the picture."""
        positions = -(-self.width // 16) * -(-self.height // 16)
        return {FRAME: MAX_POSITION_BYTES * positions + _SPARE, ALPHA: 2 * self.width * self.height + _SPARE}

    def pack(self) -> bytes:
        """The payload of the HEAD chunk."""
        kind = MODES.index(self.mode) | (_TILED if self.tile else 0) | (_MANY if self.frames > 1 else 0)
        kind |= self.progressive * _PROGRESSIVE
        coding = CONTEXTS.index(self.context) | QUANTIZERS.index(self.quantizer) << 4 | self.adaptive * _ADAPTIVE
        return b"".join(
            (
                write_varint(self.width),
                write_varint(self.height),
                bytes((kind, coding)),
                self.model_id,
                struct.pack("<H", self.quality_code),
                write_varint(self.tile // TILE_UNIT) if self.tile else b"",
                write_varint(self.frames) if self.frames > 1 else b"",
            )
        )

    @classmethod
    def unpack(cls, payload: bytes) -> Header:
        """Read and check the payload of a HEAD chunk; ``OSError`` for what no encoder writes."""
        width, at = read_varint(payload, 0)
        height, at = read_varint(payload, at)
        if len(payload) < at + 12:
            raise OSError("damaged LIC file: the header is too short")
        flags, coding = payload[at], payload[at + 1]
        kind = flags & ~(_PROGRESSIVE | _TILED | _MANY)
        model_id = payload[at + 2 : at + 10]
        (quality_code,) = struct.unpack_from("<H", payload, at + 10)
        at += 12
        tile, frames = 0, 1
        if flags & _TILED:
            tile, at = read_varint(payload, at)
        if flags & _MANY:
            frames, at = read_varint(payload, at)
        if at != len(payload):
            raise OSError("damaged LIC file: the header is too long")
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise OSError(f"damaged LIC file: impossible size {width}x{height}")
        if kind >= len(MODES):
            raise OSError(f"this LIC file has a pixel mode (code {kind}) that needs a newer pillow-lic")
        context, quantizer = coding & 15, (coding & ~_ADAPTIVE) >> 4
        if context >= len(CONTEXTS) or quantizer >= len(QUANTIZERS):
            raise OSError("this LIC file uses a context model or quantizer that needs a newer pillow-lic")
        tile *= TILE_UNIT
        if quality_code > MAX_QUALITY_CODE or (frames > 1) != bool(flags & _MANY) or not 1 <= frames <= MAX_FRAMES:
            raise OSError("damaged LIC file: impossible values in the header")
        if tile > MAX_TILE or (flags & _TILED and not tile):
            raise OSError("damaged LIC file: impossible size of tiles")
        if not tile and not fits_one_tile(width, height):
            raise OSError(f"damaged LIC file: {width}x{height} pixels without tiles")
        return cls(
            width, height, MODES[kind], model_id, quality_code,
            CONTEXTS[context], QUANTIZERS[quantizer], tile, frames, bool(coding & _ADAPTIVE),
            progressive=bool(flags & _PROGRESSIVE),
        )  # fmt: skip


@dataclass(frozen=True)
class Animation:
    """How often to play the frames (0: for ever), and how long to show each, in milliseconds.

    Raises ``TypeError`` for anything but whole numbers, ``ValueError`` for those below 0 or above 32 bits.
    """

    loop: int = 0
    durations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, number in (("loop", self.loop), *(("durations", n) for n in self.durations)):
            if not isinstance(number, Integral):
                raise TypeError(f"{name} must be a whole number, not {number!r}")
            if not 0 <= number < 2**32:
                raise ValueError(f"{name} must lie in 0 ... 2**32 - 1, not {number}")

    def pack(self) -> bytes:
        """The payload of the ANIM chunk."""
        return b"".join(map(write_varint, (self.loop, *self.durations)))

    @classmethod
    def unpack(cls, payload: bytes, frames: int) -> Animation:
        """Read the payload of an ANIM chunk; ``OSError`` if it is not of so many frames."""
        numbers, at = [], 0
        for _ in range(frames + 1):
            number, at = read_varint(payload, at)
            numbers.append(number)
        if at != len(payload):
            raise OSError("damaged LIC file: the animation chunk is too long")
        try:
            return cls(numbers[0], tuple(numbers[1:]))
        except ValueError as error:
            raise OSError(f"damaged LIC file: {error}") from None


def fits_one_tile(width: int, height: int) -> bool:
    """Whether a picture may go without tiles."""
    return -(-width // 16) * -(-height // 16) <= MAX_TILE_POSITIONS


def write_varint(value: int) -> bytes:
    """LEB128: seven bits a byte, lowest first, the high bit set on all but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of at most 35 bits and the position after it; ``OSError`` if there is none."""
    value = 0
    for n, byte in enumerate(data[at : at + 5]):
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, at + n + 1
    raise OSError("damaged LIC file: a number has no end")
