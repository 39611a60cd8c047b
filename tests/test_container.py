from __future__ import annotations

import math
import struct
from dataclasses import replace
from io import BytesIO

import pytest
from conftest import coded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pillow_lic import container, plugin
from pillow_lic import header as lic_header
from pillow_lic.container import Frame, Reader
from pillow_lic.header import Animation, Header
from pillow_lic.signature import accept

HEADER = Header(300, 200, "RGB", b"modelid8", 700)


class Asked(BytesIO):
    """A file that knows how much was asked of it at a time: a file on a disk makes room for that much."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0
        self.most = max(self.most, size)
        return super().read(size)


def read(data: bytes) -> tuple[Header, dict[str, bytes], list[Frame]]:
    fp = Asked(data)
    try:
        reader = Reader(fp)
        metadata = reader.metadata()
        return reader.header, metadata, list(reader.frames())
    finally:
        assert fp.most <= len(data) + 2**20


headers = st.builds(
    Header,
    st.integers(1, 2048),
    st.integers(1, 2048),
    st.sampled_from(("L", "RGB")),
    st.binary(min_size=8, max_size=8),
    st.integers(0, lic_header.MAX_QUALITY_CODE),
)


@given(headers, st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=300))
def test_round_trip(header: Header, exif: bytes, xmp: bytes, tile: bytes) -> None:
    metadata = {"exif": exif, "xmp": xmp}
    assert read(container.write(header, metadata, [Frame([tile])])) == (header, metadata, [Frame([tile])])


@given(st.sampled_from(("LA", "RGBA")), st.binary(max_size=300), st.binary(min_size=1, max_size=300))
def test_transparency_comes_back(mode: str, tile: bytes, alpha: bytes) -> None:
    header, frame = replace(HEADER, mode=mode), Frame([tile], alpha)
    assert read(container.write(header, {}, [frame])) == (header, {}, [frame])


def test_transparency_must_be_there_where_it_is_announced_and_only_there() -> None:
    for mode, alpha in (("RGBA", None), ("RGB", b"a")):
        data = container.write(replace(HEADER, mode=mode), {}, [Frame([b"abcd"], alpha)])
        with pytest.raises(OSError, match="transparency is missing, or comes"):
            read(data)


@given(st.lists(st.binary(max_size=200), min_size=6, max_size=6))
def test_tiles_come_back_one_by_one(tiles: list[bytes]) -> None:
    header = replace(HEADER, tile=128)
    assert header.tiles == 6
    assert read(container.write(header, {}, [Frame(tiles)]))[2] == [Frame(tiles)]


def test_overhead_of_a_small_picture_is_at_most_48_bytes() -> None:
    # The tile's own four bytes of checksum included.
    assert len(container.write(HEADER, {}, [Frame([b"\0" * 4])])) <= 48


def test_another_signature_is_not_ours() -> None:
    with pytest.raises(SyntaxError):
        Reader(BytesIO(b"\x89PNG\r\n\x1a\n" + b"\0" * 40))
    assert not accept(b"\x89PNG")
    assert accept(container.write(HEADER, {}, [Frame([b""])])[:16])


def test_text_mode_damage_shows() -> None:
    data = container.write(HEADER, {}, [Frame([b"abcd"])])
    with pytest.raises(SyntaxError):
        Reader(BytesIO(data.replace(b"\r\n", b"\n")))


def test_a_later_version_is_named() -> None:
    data = bytearray(container.write(HEADER, {}, [Frame([b"abcd"])]))
    data[8] = 2
    with pytest.raises(OSError, match="version 2"):
        Reader(BytesIO(data))


def test_every_cut_is_an_error() -> None:
    data = container.write(HEADER, {"exif": b"e" * 30}, [Frame([b"abcd" * 10])])
    for length in range(8, len(data)):
        with pytest.raises(OSError, match=r"truncated|damaged"):
            read(data[:length])


def test_every_flipped_bit_is_an_error() -> None:
    data = container.write(HEADER, {"exif": b"e" * 30}, [Frame([b"abcd" * 10])])
    for position in range(8, len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(OSError):  # noqa: PT011  (any message: each kind of damage has its own)
                read(bytes(damaged))


def test_unknown_chunks_are_skipped_if_their_name_begins_lower_case() -> None:
    data = container.write(HEADER, {}, [Frame([b"abcd"])])
    start = data.index(b"FRAM")
    extra = container._chunk(b"newx", b"whatever")
    assert read(data[:start] + extra + data[start:])[2] == [Frame([b"abcd"])]
    wrong = bytearray(extra)
    wrong[-1] ^= 1
    with pytest.raises(OSError, match="wrong checksum of the newx chunk"):
        read(data[:start] + bytes(wrong) + data[start:])
    critical = container._chunk(b"Newx", b"whatever")
    with pytest.raises(OSError, match="needs a newer pillow-lic"):
        read(data[:start] + critical + data[start:])


def test_metadata_among_frames_and_of_no_kind_are_refused() -> None:
    data = container.write(HEADER, {"exif": b"first"}, [Frame([b"abcd"])])
    start = data.index(b"FRAM")
    animation = Header(30, 20, "RGB", b"modelid8", 700, frames=2)
    film = container.write(animation, {}, [Frame([b"abcd"])] * 2, Animation(0, (40, 40)))
    second = film.rindex(b"FRAM")
    for kind in (b"exif", b"dpix", b"modl"):
        with pytest.raises(OSError, match=f"a {kind.decode()} chunk where none belongs"):
            read(film[:second] + container._chunk(kind, b"\0second") + film[second:])
    with pytest.raises(OSError, match="the resolution is no two numbers"):
        read(data[:start] + container._chunk(b"dpix", b"\0abc") + data[start:])
    name = container._chunk(b"modl", b"mine")
    assert read(data[:start] + name + data[start:])[2] == [Frame([b"abcd"])]
    nameless, long = (container._chunk(b"modl", b"m" * length) for length in (0, 256))
    for chunks in (name + name, nameless + name, long):
        with pytest.raises(OSError, match="the modl chunk is too long or repeated"):
            read(data[:start] + chunks + data[start:])
    clear = container.write(Header(30, 20, "RGBA", b"modelid8", 700), {}, [Frame([b"abcd"], b"")])
    with pytest.raises(OSError, match="the transparency is empty"):
        read(clear)


def test_a_false_length_allocates_nothing() -> None:
    data = container.write(HEADER, {}, [Frame([b"abcd"])])
    start = data.index(b"FRAM")
    with pytest.raises(OSError, match="truncated"):
        read(data[:start] + b"FRAM" + lic_header.write_varint(HEADER.max_length[b"FRAM"]) + b"abc")
    with pytest.raises(OSError, match="too long for the picture"):
        read(data[:start] + b"FRAM" + lic_header.write_varint(HEADER.max_length[b"FRAM"] + 1) + b"abc")
    with pytest.raises(OSError, match="too long for the picture"):
        read(data[:start] + b"ALPH" + lic_header.write_varint(HEADER.max_length[b"ALPH"] + 1) + b"abc")
    with pytest.raises(OSError, match="truncated"):
        read(data[:start] + b"junk" + lic_header.write_varint(2**31 - 1) + b"abc")
    with pytest.raises(OSError, match="too large"):
        read(data[:start] + b"FRAM" + lic_header.write_varint(2**34))


def test_metadata_that_unpack_to_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = container.write(HEADER, {"xmp": b"\0" * 5000}, [Frame([b"abcd"])])
    monkeypatch.setattr(container, "MAX_METADATA", 4000)
    with pytest.raises(OSError, match="too long"):
        read(data)
    monkeypatch.setattr(container, "MAX_METADATA", 5000)
    assert read(container.write(HEADER, {"xmp": bytes(range(250)) * 20}, [Frame([b"a"])]))[1]["xmp"][:3] == b"\0\1\2"
    monkeypatch.setattr(container, "MAX_METADATA", 4000)
    with pytest.raises(ValueError, match="at most 4000"):
        container.write(HEADER, {"xmp": b"\0" * 5000}, [Frame([b"abcd"])])


def test_more_tiles_than_bytes_are_refused_before_they_are_counted() -> None:
    header = replace(HEADER, width=2**24, height=2**24, tile=64)
    good = container.write(HEADER, {}, [Frame([b"abcd"])])
    start = good.index(b"FRAM")
    head = container._chunk(b"HEAD", header.pack())
    with pytest.raises(OSError, match="fewer bytes than tiles"):
        read(good[:9] + head + good[start:])


@pytest.mark.parametrize(
    "change", [{"width": 0}, {"height": 2**25}, {"quality_code": 1793}, {"frames": 2**16 + 1}, {"tile": 2112}]
)
def test_impossible_headers(change: dict[str, int]) -> None:
    payload = replace(HEADER, **change).pack()  # type: ignore[arg-type]
    with pytest.raises(OSError, match="damaged"):
        Header.unpack(payload)


def test_what_one_tile_may_hold_is_bounded() -> None:
    """So that what a decoder allocates at once is, whatever a header claims."""
    for width, height, fits in ((2048, 2048, True), (2064, 2048, False), (2**18, 1, True), (2**18 + 1, 1, False)):
        payload = replace(HEADER, width=width, height=height).pack()
        if fits:
            assert Header.unpack(payload).width == width
        else:
            with pytest.raises(OSError, match="without tiles"):
                Header.unpack(payload)
        assert Header.unpack(replace(HEADER, width=width, height=height, tile=512).pack()).tile == 512


def test_flags_that_say_nothing_are_refused() -> None:
    payload = bytearray(HEADER.pack())
    payload[4] |= lic_header._TILED
    with pytest.raises(OSError, match="impossible size of tiles"):
        Header.unpack(bytes(payload) + b"\0")
    payload[4] ^= lic_header._TILED | lic_header._MANY
    with pytest.raises(OSError, match="impossible values"):
        Header.unpack(bytes(payload) + b"\1")


def test_codes_of_later_versions_are_named() -> None:
    payload = bytearray(HEADER.pack())
    payload[4] = 9
    with pytest.raises(OSError, match="needs a newer"):
        Header.unpack(bytes(payload))
    payload[4:6] = bytes((1, 0x0F))
    with pytest.raises(OSError, match="needs a newer"):
        Header.unpack(bytes(payload))


def test_what_comes_twice_is_damage_and_not_of_a_newer_version() -> None:
    clear = container.write(replace(HEADER, mode="RGBA"), {}, [Frame([b"abcd"], b"alpha")])
    start = clear.index(b"FRAM")
    with pytest.raises(OSError, match="a ALPH chunk where none belongs"):
        read(clear[:start] + container._chunk(b"ALPH", b"again") + clear[start:])
    film = container.write(replace(HEADER, frames=2), {}, [Frame([b"abcd"])] * 2, Animation(0, (40, 40)))
    start, end = film.index(b"ANIM"), film.index(b"FRAM")
    with pytest.raises(OSError, match="the ANIM chunk is too long or repeated"):
        read(film[:end] + film[start:end] + film[end:])


def test_a_resolution_that_is_none_is_not_shown(small: Image.Image) -> None:
    for dpi in ((math.nan, 72.0), (72.0, math.inf), (0.0, 72.0)):
        data = coded(small, dpi=(72, 72))
        reader = container.Reader(BytesIO(data))
        metadata = reader.metadata()
        made = container.write(reader.header, metadata | {"dpi": struct.pack("<2d", *dpi)}, list(reader.frames()))
        with Image.open(BytesIO(made)) as image:
            assert "dpi" not in image.info
            image.load()


def test_the_plugin_knows_every_kind_of_metadata() -> None:
    assert container.METADATA.keys() == plugin.METADATA
