from __future__ import annotations

import shutil
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coded, load, psnr
from PIL import Image, ImageSequence, UnidentifiedImageError

import pillow_lic
from pillow_lic.codec import decoding
from pillow_lic.entropy.context import ExactContext
from pillow_lic.models.draft import load_draft
from pillow_lic.models.loading import Model, load_model
from pillow_lic.models.transforms import Architecture, Synthesis


def opened(data: bytes, **options: object) -> Image.Image:
    return pillow_lic.open(BytesIO(data), **options)  # type: ignore[arg-type]


def whole(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as image:
        image.load()
        return image


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("tile", [0, 64])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_draft_is_the_whole_made_smaller(mode: str, tile: int, scale: int) -> None:
    image = load("coffee").convert(mode)  # 257x153: no multiple of anything
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = coded(image, tile=tile, quality=5)
    small = opened(data)
    size = (image.width // scale, image.height // scale)
    assert small.draft(None, size) == (mode, (0, 0, image.width / scale, image.height / scale))
    # Band by band: of RGBA as a whole, Pillow would weight colours by their transparency.
    expected = Image.merge(mode, [band.reduce(scale) for band in whole(data).split()])
    assert small.size == expected.size
    assert small.mode == mode
    assert psnr(small, expected) > (45 if scale == 2 else 38)
    if mode == "RGBA":
        assert np.array_equal(np.asarray(small)[:, :, 3], np.asarray(expected)[:, :, 3])


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((256, 192), 1),
        ((129, 5), 1),
        ((128, 96), 2),
        ((65, 1), 2),
        ((64, 48), 4),
        ((20, 25), 4),
        ((32, 24), 8),
        ((0, 0), 8),
    ],
)
def test_a_draft_is_at_least_as_large_as_asked_for(photo: Image.Image, asked: tuple[int, int], given: int) -> None:
    image = opened(coded(photo))
    image.draft("L", asked)
    assert image.size == (photo.width // given, photo.height // given)
    image.draft(None, photo.size)
    assert image.size == photo.size
    image.draft(None, asked)
    image.load()
    assert image.size == (photo.width // given, photo.height // given)
    assert image.draft(None, (1, 1)) is None  # too late
    assert image.size == (photo.width // given, photo.height // given)


def test_thumbnail_decodes_a_draft(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(photo)
    expected = whole(data)
    expected.thumbnail((48, 48))
    scales = []
    forward = Synthesis.forward
    monkeypatch.setattr(Synthesis, "forward", lambda *a: scales.append(a[3]) or forward(*a))
    image = opened(data)
    image.thumbnail((48, 48))
    assert scales == [2]
    assert image.size == (48, 36)
    assert psnr(image, expected) > 40


def test_a_small_thumbnail_reads_less_of_the_symbols(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(photo.resize((768, 576), Image.Resampling.LANCZOS), quality=5)
    expected = whole(data)
    read = []
    decode = ExactContext.decode
    monkeypatch.setattr(ExactContext, "decode", lambda *a: read.extend(a[3:]) or decode(*a))
    for size, channels, least in (((48, 48), 64, 44), ((72, 72), 128, 45)):
        image = opened(data)
        image.thumbnail(size)
        assert read[-1] == channels
        other = expected.copy()
        other.thumbnail(size)
        assert image.size == other.size
        assert psnr(image, other) > least
    drafted = opened(data, size=(64, 48))  # whoever asks for so many pixels looks at all of them
    drafted.load()
    assert read[-1] == 128


@pytest.mark.parametrize("quality", [1, 4, 8])
def test_a_small_thumbnail_keeps_saturated_colours(quality: float) -> None:
    """Of strong colours much lies in channels that a photograph's thumbnail could do without."""
    bars = Image.new("RGB", (960, 640))
    for number, colour in enumerate(("white", "yellow", "cyan", "lime", "magenta", "red", "blue", "black")):
        bars.paste(colour, (120 * number, 0, 120 * (number + 1), 640))
    data = coded(bars, quality=quality)
    expected, image = whole(data), opened(data)
    for each in (expected, image):
        each.thumbnail((60, 60))
    assert psnr(image, expected) > 40


def test_a_drafted_image_in_parts_and_frames(photo: Image.Image) -> None:
    data = coded(photo, append_images=[photo.transpose(Image.Transpose.ROTATE_180)])
    image = opened(data, size=(64, 48))
    assert image.size == (64, 48)
    part = image.crop((10, 10, 30, 20))
    assert np.array_equal(np.asarray(part), np.asarray(image)[10:20, 10:30])
    assert np.array_equal(np.asarray(image.read_region((10, 10, 30, 20))), np.asarray(part))
    assert [frame.size for frame in ImageSequence.Iterator(image)] == [(64, 48)] * 2
    film = opened(data)
    film.thumbnail((50, 50))
    film.seek(1)
    assert np.asarray(film).shape[:2] == film.size[::-1]


def test_means_of_the_head_are_means_of_its_pixels() -> None:
    torch.manual_seed(1)
    network = Synthesis(Architecture(latents=24, synthesis=(1, 1)))
    y, quality = torch.randn(1, 24, 3, 5), torch.tensor([3.0])
    pixels = network(y, quality)
    for scale in (2, 4, 8):
        expected = torch.nn.functional.avg_pool2d(pixels, scale)
        assert torch.allclose(network(y, quality, scale), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "least"), [("mse", 38), ("ms-ssim", 35)])  # whose synthesis is less linear
def test_shipped_models_have_drafts_of_their_own(name: str, least: int, photo: Image.Image) -> None:
    model = load_model(name)
    draft = model.draft(torch.device("cpu"))  # type: ignore[union-attr]
    assert draft is not None
    data = coded(photo, tune=name)
    expected = whole(data).reduce(4)
    assert psnr(opened(data, size=(64, 48)), expected) > least


def test_several_threads_make_the_same_draft(photo: Image.Image) -> None:
    data = coded(photo, tile=64)
    before = torch.get_num_threads()
    one, two = (np.asarray(opened(data, size=(64, 48), threads=n)).astype(int) for n in (1, 2))
    assert np.abs(one - two).max() <= 1
    assert torch.get_num_threads() == before


def test_a_draft_reads_what_it_looks_at(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(photo)
    found = np.asarray(opened(data, size=(64, 48)))
    monkeypatch.setattr(decoding, "channels_for", lambda shown: 320)  # all there are
    assert np.array_equal(np.asarray(opened(data, size=(64, 48))), found)


def test_a_model_without_a_draft_makes_means_of_what_it_shows(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    shutil.copy(load_model("mse").path, path)
    cpu = torch.device("cpu")
    identity, latents = load_model("mse").identity, load_model("mse").arch.latents
    assert load_draft(path, identity, latents, cpu) is None
    shutil.copy(load_model("mse").path.with_suffix(".draft"), path.with_suffix(".draft"))
    assert load_draft(path, identity, latents, cpu) is not None
    assert load_draft(path, b"another1", latents, cpu) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "draft", lambda *_: None)
        data = coded(photo)
        assert psnr(opened(data, size=(32, 24)), whole(data).reduce(8)) > 45


def test_opening_with_options(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "x.lic")
    with pillow_lic.open(tmp_path / "x.lic", device="cpu", threads=1, size=(100, 90)) as image:
        assert isinstance(image, Image.Image)
        assert image.size == (128, 96)
        image.load()
    with pillow_lic.open(tmp_path / "x.lic") as image:
        assert image.read_region((3, 4, 9, 20)).size == (6, 16)
    photo.save(tmp_path / "y.png")
    with pytest.raises(UnidentifiedImageError):
        pillow_lic.open(tmp_path / "y.png")
    with pytest.raises(ValueError, match="device must be"):
        opened(coded(photo), device="abacus").load()


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_impossible_threads(photo: Image.Image, threads: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="threads must be"):
        opened(b"", threads=threads)
    with pytest.raises(error, match="threads must be"):
        coded(photo, threads=threads)


def test_threads_are_limited_and_put_back(small: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    forward = Synthesis.forward
    monkeypatch.setattr(Synthesis, "forward", lambda *a: used.append(torch.get_num_threads()) or forward(*a))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        data = coded(small, threads=3, target_psnr=25)
        assert set(used) == {3}
        used.clear()
        opened(data, threads=1).load()
        opened(data).load()
        assert used == [1, 2]
        with pytest.raises(OSError, match="damaged"):
            opened(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], threads=1).load()
        assert torch.get_num_threads() == 2
        worker = threading.Thread(target=lambda: used.append(torch.get_num_threads()))
        worker.start()
        worker.join()
        assert used[-1] == 2
    finally:
        torch.set_num_threads(before)
