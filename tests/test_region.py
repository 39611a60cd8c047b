from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import coded
from PIL import Image

from pillow_lic.codec import decoding

Box = tuple[int, int, int, int]

BOXES = [(0, 0, 1, 1), (60, 60, 70, 70), (100, 5, 256, 192), (0, 0, 256, 192), (255, 191, 256, 192)]


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("tile", [0, 64])
@pytest.mark.parametrize("box", BOXES)
def test_a_region_is_that_of_the_whole(photo: Image.Image, mode: str, tile: int, box: Box) -> None:
    image = photo.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = coded(image, tile=tile)
    whole = opened(data)
    whole.load()
    for region in (opened(data).read_region(box), opened(data).crop(box)):
        assert region.mode == mode
        assert np.array_equal(np.asarray(region), np.asarray(whole.crop(box)))
    assert np.array_equal(np.asarray(whole.read_region(box)), np.asarray(whole.crop(box)))


@pytest.mark.parametrize("box", [(0, 64, 128, 192), (0, 128, 128, 192), (70, 130, 90, 150)])
def test_regions_of_a_model_without_margins(photo: Image.Image, box: Box) -> None:
    """Its tiles need nothing of those above."""
    data = coded(photo, tile=64, model=str(Path(__file__).parent / "golden" / "lattice.safetensors"))
    assert np.array_equal(
        np.asarray(opened(data).read_region(box)), np.asarray(opened(data))[box[1] : box[3], box[0] : box[2]]
    )


def test_only_the_tiles_in_and_around_it_are_decoded(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(photo, tile=64)
    latents, pixels = [], []
    decode, synthesise = decoding._latents, decoding._pixels
    monkeypatch.setattr(decoding, "_latents", lambda *a: latents.extend(a[1]) or decode(*a))
    monkeypatch.setattr(decoding, "_pixels", lambda *a: pixels.append(a[1]) or synthesise(*a))
    opened(data).read_region((70, 70, 80, 80))
    assert (len(latents), len(pixels)) == (9, 1)
    latents.clear()
    opened(data).read_region((0, 0, 10, 10))
    assert len(latents) == 4


def test_a_crop_leaves_the_image_lazy_and_usable(photo: Image.Image) -> None:
    image = opened(coded(photo, tile=64))
    part = image.crop((10, 10, 50, 40))
    image.load()
    assert np.array_equal(np.asarray(part), np.asarray(image.crop((10, 10, 50, 40))))
    beyond = opened(coded(photo, tile=64)).crop((-5, -5, 20, 20))
    assert beyond.getpixel((0, 0)) == (0, 0, 0)


def test_regions_of_frames(photo: Image.Image) -> None:
    image = opened(coded(photo, append_images=[photo.transpose(Image.Transpose.ROTATE_180)], tile=64))
    image.seek(1)
    region = image.read_region((64, 64, 100, 100))
    assert np.array_equal(np.asarray(region), np.asarray(image)[64:100, 64:100])


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (-1, 0, 5, 5), (0, 0, 257, 10)])
def test_impossible_regions(photo: Image.Image, box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="does not lie inside the image of 256x192"):
        opened(coded(photo)).read_region(box)


@pytest.mark.parametrize("quantizer", ["scalar", "bw16", "h24", "diamond"])
@pytest.mark.parametrize("context", ["none", "channel", "staircase", "autoregressive"])
def test_tiles_are_read_together_as_alone(
    context: str, quantizer: str, tiny: str, small: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pillow_lic.codec import tiles

    coded = BytesIO()
    # Rows of three tiles, the last narrower, of a height that is no multiple of a hyperlatent.
    small.resize((180, 250)).save(coded, "LIC", model=tiny, tile=64, context=context, quantizer=quantizer)
    together = np.asarray(Image.open(coded))
    monkeypatch.setattr(tiles, "STACK", 0)
    assert np.array_equal(together, np.asarray(Image.open(coded)))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_region_can_be_written_on(photo: Image.Image, mode: str) -> None:
    region = opened(coded(photo.convert(mode), tile=64)).crop((3, 5, 40, 50))
    colour = (7,) * len(mode) if len(mode) > 1 else 7
    region.putpixel((2, 3), colour)
    region.load()[0, 0] = colour
    assert region.getpixel((0, 0)) == region.getpixel((2, 3)) == colour


def test_patches_of_one_tile_decode_it_once(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = decoding._latents
    monkeypatch.setattr(decoding, "_latents", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    image = opened(coded(photo))
    patches = [image.crop((x, 0, x + 64, 64)) for x in range(0, 192, 32)]
    assert len(decoded) == 1
    assert np.array_equal(np.asarray(patches[1])[:, :32], np.asarray(patches[0])[:, 32:])


def test_who_cuts_many_patches_loads_the_image(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = decoding._latents
    monkeypatch.setattr(decoding, "_latents", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    image = opened(coded(photo, tile=64))
    whole = np.asarray(opened(coded(photo, tile=64)))
    tiles = len(decoded)
    for y in range(0, 192, 32):
        for x in range(0, 256, 32):
            patch = np.asarray(image.crop((x, y, x + 32, y + 32)))
            assert np.abs(patch.astype(int) - whole[y : y + 32, x : x + 32]).max() <= 1
    assert len(decoded) - tiles <= 4 * tiles
