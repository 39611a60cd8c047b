from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import coded, load, pixels_of, psnr
from PIL import Image

import pillow_lic
from pillow_lic import codec, container, devices
from pillow_lic.codec import decoding
from pillow_lic.header import Header
from pillow_lic.models.loading import load_model
from pillow_lic.options import EncoderOptions
from pillow_lic.pixels import latent_size, put_pixels, tiles_of
from pillow_lic.symbols import decode_symbols, pack
from pillow_lic.training import probabilities

CPU = torch.device("cpu")


def symbols_of(data: bytes) -> list[np.ndarray]:
    reader = container.Reader(BytesIO(data))
    reader.metadata()
    header = reader.header
    tiles = tiles_of(header.width, header.height, header.tile)
    found = []
    with devices.quiet(CPU):
        for tile, part in zip(tiles, next(reader.frames()).tiles, strict=True):
            decoded = decode_symbols(load_model("mse"), header, tile, part, CPU)
            found += [decoded.z, decoded.y]
    return found


def test_photographs_come_back_well(photo: Image.Image) -> None:
    low, high = coded(photo, quality=1), coded(photo, quality=8)
    assert len(low) < len(high) / 4
    assert psnr(photo, pixels_of(low)) > 25
    assert psnr(photo, pixels_of(high)) > 36


def test_a_smaller_file_than_jpeg_of_the_same_quality(photo: Image.Image) -> None:
    data = coded(photo, quality=3)
    ours = psnr(photo, pixels_of(data))
    for quality in range(1, 100):
        out = BytesIO()
        photo.save(out, "JPEG", quality=quality, optimize=True, progressive=True)
        if psnr(photo, Image.open(out)) >= ours:
            break
    assert len(data) < 0.8 * len(out.getvalue())


def test_size_and_distortion_rise_with_quality(photo: Image.Image) -> None:
    files = [coded(photo, quality=1 + 7 * n / 10) for n in range(11)]
    sizes, values = [len(f) for f in files], [psnr(photo, pixels_of(f)) for f in files]
    assert sizes == sorted(sizes)
    assert values == sorted(values)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (17, 63), (64, 64), (65, 129), (2, 2)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_any_size(size: tuple[int, int], mode: str) -> None:
    image = load("astronaut").resize(size).convert(mode)
    data = coded(image, quality=6)
    with Image.open(BytesIO(data)) as back:
        assert (back.size, back.mode) == (size, mode)
        assert psnr(image, back) > 24


def test_grey_stays_grey(grey: Image.Image) -> None:
    back = pixels_of(coded(grey, quality=6))
    assert back.shape == (200, 200)
    assert psnr(grey, back) > 33


def test_coding_twice_gives_the_same_bytes(photo: Image.Image) -> None:
    assert coded(photo, quality=2.7) == coded(photo, quality=2.7)


def test_tiles_leave_no_seam(photo: Image.Image) -> None:
    whole, tiled = coded(photo, quality=3, tile=0), coded(photo, quality=3, tile=64)
    assert container.Reader(BytesIO(tiled)).header.tiles == 12
    a, b = pixels_of(whole).astype(int), pixels_of(tiled).astype(int)
    assert psnr(photo, b) > psnr(photo, a) - 0.15
    # Columns next to a seam are about as good as the same ones of the whole picture.
    original = np.asarray(photo, int)
    seam = [x for x in range(1, 255) if x % 64 in (63, 0)]
    errors = [((picture - original)[:, seam] ** 2).mean() for picture in (a, b)]
    assert errors[1] < 1.1 * errors[0]


def test_synthesis_of_tiles_equals_that_of_the_whole(photo: Image.Image) -> None:
    """With the same latents, tiles with margins give the very pixels of one large tile."""
    model = load_model("mse")
    header = Header(256, 192, "RGB", model.identity, 600)
    array = np.asarray(photo)
    rng = np.random.default_rng(0)
    h, w = latent_size(192), latent_size(256)
    y = torch.from_numpy(rng.normal(size=(model.arch.latents, h, w)).astype(np.float32)) * 20
    whole, tiled = np.empty_like(array), np.empty_like(array)
    with torch.inference_mode():
        tile = next(iter(tiles_of(256, 192, 0)))
        put_pixels(whole, tile, decoding._pixels(decoding._View(model, header, y.device), tile, {0: y}))
        split = Header(256, 192, "RGB", model.identity, 600, tile=64)
        rows = {n: y[:, 4 * n : 4 * n + 4] for n in range(3)}
        for tile in tiles_of(256, 192, 64):
            put_pixels(tiled, tile, decoding._pixels(decoding._View(model, split, y.device), tile, rows))
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_progress_is_reported_by_tile(photo: Image.Image) -> None:
    seen: list[tuple[int, int]] = []
    with codec.reporting_to(lambda done, total: seen.append((done, total))):
        pixels_of(coded(photo, tile=128))
    assert seen == [(n, 4) for n in range(1, 5)] * 2


def test_what_does_not_fit_one_tile(photo: Image.Image) -> None:
    wide = photo.resize((300_000, 1))
    with pytest.raises(ValueError, match="too large for one tile"):
        coded(wide, tile=0)
    with Image.open(BytesIO(coded(wide, quality=1))) as image:
        assert image.size == wide.size
        image.verify()


def test_large_pictures_are_tiled_by_default(photo: Image.Image) -> None:
    large = photo.resize((1280, 900))
    data = coded(large, quality=2)
    assert container.Reader(BytesIO(data)).header.tile == 512
    assert psnr(large, pixels_of(data)) > 30


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_decoding_does_not_depend_on_threads_and_hardly_on_precision(
    photo: Image.Image, precision: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = coded(photo, quality=4)
    expected, picture = symbols_of(data), pixels_of(data)
    monkeypatch.setenv("PILLOW_LIC_PRECISION", precision)
    devices.block_dtype.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        found = symbols_of(data)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        assert np.abs(pixels_of(data).astype(int) - picture).max() <= 2
        assert np.abs(pixels_of(data).astype(int) - picture).mean() < 0.1
    finally:
        torch.set_num_threads(before)
        devices.block_dtype.cache_clear()


def test_a_precision_that_is_none(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLOW_LIC_PRECISION", "float16")
    devices.block_dtype.cache_clear()
    try:
        with pytest.raises(ValueError, match="PILLOW_LIC_PRECISION must be 'float32' or 'bfloat16', not 'float16'"):
            coded(photo)
    finally:
        devices.block_dtype.cache_clear()


def test_symbols_do_not_depend_on_the_callers_torch_settings(photo: Image.Image) -> None:
    data = coded(photo, quality=4)
    expected, picture = symbols_of(data), pixels_of(data)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = symbols_of(data)
            inside = pixels_of(data)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert np.abs(inside.astype(int) - picture).max() <= 1


def test_saving_inside_autocast_and_grad_changes_nothing(photo: Image.Image) -> None:
    expected = coded(photo, quality=4)
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        assert coded(photo, quality=4) == expected
    assert torch.is_grad_enabled()


def test_stream_is_close_to_the_ideal_length(photo: Image.Image) -> None:
    model = load_model("mse")
    large = np.asarray(photo.resize((768, 512)))
    header = Header(768, 512, "RGB", model.identity, 600)
    with torch.inference_mode():
        (tile,) = codec.analyse(model, large, header, CPU)
        ideal = model.tables.bits(tile.z, tile.z_index).sum() / 8
        ideal += model.tables.bits(tile.y, tile.priors.index.numpy()).sum() / 8
        real = len(pack(model, tile, "none")) - 4
    assert ideal <= real <= 1.005 * ideal + 4


def test_a_file_of_another_model_says_so(small: Image.Image, tmp_path: object) -> None:
    data = bytearray(coded(small))
    header = container.Reader(BytesIO(data)).header
    other = Header(header.width, header.height, "RGB", b"\1\2\3\4\5\6\7\x08", header.quality_code)
    reader = container.Reader(BytesIO(data))
    reader.metadata()
    changed = container.write(other, {}, list(reader.frames()))
    with (
        Image.open(BytesIO(changed)) as image,
        pytest.raises(OSError, match="0102030405060708, which is not"),
    ):
        image.load()


def test_a_model_that_is_not_installed_cannot_encode(small: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"no model 'nope' is installed; there are: .*mse"):
        coded(small, model="nope")
    with pytest.raises(ValueError, match=r"no model file /nowhere/x\.safetensors"):
        coded(small, model="/nowhere/x.safetensors")


def test_a_file_that_is_no_model_is_refused(small: Image.Image, tmp_path: object) -> None:
    path = tmp_path / "bad.safetensors"  # type: ignore[operator]
    path.write_bytes(b"not a model at all")
    with pytest.raises(ValueError, match="not a pillow-lic model"):
        coded(small, model=str(path))


def test_devices(small: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    assert coded(small, device="cpu")
    with pytest.raises(ValueError, match="device must be"):
        coded(small, device="toaster")
    with pytest.raises(ValueError, match="does not exist"):
        coded(small, device="cuda:99")
    monkeypatch.setenv("PILLOW_LIC_DEVICE", "toaster")
    with pytest.raises(ValueError, match="device must be"):
        coded(small)


def test_pixels_of_other_kinds_are_refused() -> None:
    opts = EncoderOptions()
    with pytest.raises(TypeError, match="uint8"):
        codec.encode(np.zeros((4, 4), np.float32), opts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        codec.encode(np.zeros((4, 4, 5), np.uint8), opts)
    with pytest.raises(ValueError, match="empty"):
        codec.encode(np.zeros((0, 4), np.uint8), opts)


def test_the_ladder_of_scales() -> None:
    assert probabilities.sigma_of(0) == pytest.approx(0.11)
    assert probabilities.sigma_of(63) == pytest.approx(60)


def test_a_picture_that_no_decoder_would_take() -> None:
    wide = Image.new("L", (2**24 + 1, 1))
    with pytest.raises(ValueError, match="16777216 pixels a side"):
        coded(wide)
    with pytest.raises(ValueError, match="16777216 pixels a side"):
        pillow_lic.encode_batch([wide])


def test_progress_of_a_target_is_that_of_encoding(small: Image.Image) -> None:
    seen: list[tuple[int, int]] = []
    coded(small, target_psnr=30, progress=lambda *both: seen.append(both))
    assert seen
    assert set(seen) == {(1, 1)}
    before = len(seen)
    frames = [small, small.rotate(90), small.rotate(180)]
    film = coded(small, save_all=True, append_images=frames[1:])
    with codec.reporting_to(lambda *both: seen.append(both)):
        codec.transcode(film, "none")
    assert seen[before:] == [(1, 3), (2, 3), (3, 3)]
