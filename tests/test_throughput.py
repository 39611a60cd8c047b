from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coded, load, psnr
from PIL import Image, UnidentifiedImageError

import pillow_lic
from pillow_lic.codec import batches
from pillow_lic.options import EncoderOptions

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def images() -> list[Image.Image]:
    """Two of one size, another size, grey, with transparency, with a profile."""
    photo = load("astronaut")
    found = [photo.crop((n, n, n + 90, n + 70)) for n in (0, 50)]
    found += [photo.crop((80, 40, 140, 90)), load("camera").crop((10, 10, 100, 80))]
    clear = found[0].copy()
    clear.putalpha(found[3])
    found.append(clear)
    found[2].info["icc_profile"] = b"profile" * 20
    return found


def test_files_are_those_of_save(images: list[Image.Image]) -> None:
    assert pillow_lic.encode_batch(images) == [coded(i) for i in images]
    options = {"quality": 6, "tile": 64, "context": "auto"}
    assert pillow_lic.encode_batch(images, workers=3, **options) == [coded(i, **options) for i in images]
    assert pillow_lic.encode_batch(images[2:3], effort=1) == [coded(images[2], effort=1)]
    assert pillow_lic.encode_batch([]) == []


def test_arrays_and_tensors(images: list[Image.Image]) -> None:
    arrays = [np.asarray(i) for i in images]
    tensors = [torch.from_numpy(a.reshape(*a.shape[:2], -1).transpose(2, 0, 1).copy()) for a in arrays]
    assert pillow_lic.encode_batch(arrays) == pillow_lic.encode_batch(tensors)
    with pytest.raises(TypeError, match="uint8"):
        pillow_lic.encode_batch([arrays[0].astype(np.float32)])
    with pytest.raises(ValueError, match="quality must be"):
        pillow_lic.encode_batch(arrays, quality=9)


def test_pictures_are_those_of_open(images: list[Image.Image], tmp_path: Path) -> None:
    files = [coded(i, tile=t) for i in images for t in (None, 64)]
    (tmp_path / "last.lic").write_bytes(files[-1])
    sources = [*files[:-2], BytesIO(files[-2]), tmp_path / "last.lic"]
    for found, data in zip(pillow_lic.decode_batch(sources, workers=3), files, strict=True):
        with Image.open(BytesIO(data)) as single:
            assert found.tobytes() == single.tobytes()
            assert (found.mode, found.info) == (single.mode, single.info)
    assert pillow_lic.decode_batch([]) == []


def test_tensors(images: list[Image.Image]) -> None:
    for image in images:
        data = coded(image)
        tensor = pillow_lic.decode_tensor(data)
        with Image.open(BytesIO(data)) as single:
            expected = np.asarray(single)
        assert (tensor.dtype, tensor.device.type, tensor.ndim) == (torch.uint8, "cpu", 3)
        assert np.array_equal(tensor.permute(1, 2, 0).numpy().reshape(expected.shape), expected)


def test_regions_go_through_networks_together(images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: files may differ in some symbols, pixels of the same file by a rounding."""
    sizes: list[int] = []
    for name in ("_synthesise", "_analyse"):
        run = getattr(batches, name)
        monkeypatch.setattr(batches, name, lambda group, *rest, run=run: (sizes.append(len(group)), run(group, *rest)))
    monkeypatch.setattr(batches._Batches, "limit", property(lambda self: 4, lambda self, value: None), raising=False)
    photo = load("astronaut")
    pictures = [photo.crop((n, n, n + 64, n + 64)) for n in range(0, 90, 10)] + images
    files = pillow_lic.encode_batch(pictures, tile=64)
    assert max(sizes) == 4
    sizes.clear()
    shown = pillow_lic.decode_batch(files)
    assert max(sizes) == 4
    for picture, data, found in zip(pictures, files, shown, strict=True):
        assert abs(len(data) - len(coded(picture, tile=64))) <= 8
        with Image.open(BytesIO(data)) as single:
            difference = np.asarray(single).astype(int) - np.asarray(found)
        assert np.abs(difference).max() <= 1
        assert psnr(picture.convert("RGB"), found.convert("RGB")) > 25


def test_large_pictures_are_begun_one_by_one(images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    def begun_before_the_first() -> int:
        begun: list[int] = []

        def coming() -> Iterator[tuple[np.ndarray, dict[str, bytes]]]:
            for n in range(9):
                begun.append(n)
                yield np.asarray(images[0]), {}

        found = batches.encode_many(coming(), EncoderOptions())
        first = next(found)
        count = len(begun)
        assert list(found) == [first] * 8
        return count

    many = begun_before_the_first()
    monkeypatch.setattr(batches, "BEGUN_PIXELS", 1)
    assert begun_before_the_first() < many


def test_large_pictures_do_not_wait_for_others_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where a batch of one size might never be full."""
    monkeypatch.setattr(batches._Batches, "limit", property(lambda self: 4, lambda self, value: None), raising=False)
    photo = load("astronaut")
    pictures = [np.asarray(photo.crop((0, 0, 64 + 16 * n, 64))) for n in range(14)]
    files = list(batches.encode_many([(p, {}) for p in pictures], EncoderOptions()))

    def begun_before_the_first() -> int:
        begun: list[int] = []

        def coming() -> Iterator[tuple[np.ndarray, dict[str, bytes]]]:
            for n, picture in enumerate(pictures):
                begun.append(n)
                yield picture, {}

        found = batches.encode_many(coming(), EncoderOptions())
        first = next(found)
        count = len(begun)
        assert [first, *found] == files
        return count

    assert begun_before_the_first() == len(pictures)
    monkeypatch.setattr(batches, "BEGUN_PIXELS", 64 * 80)
    assert begun_before_the_first() < 6


def test_what_is_wrong(images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(images[0])
    broken = bytearray(data)
    broken[-9] ^= 1
    for decode in (pillow_lic.decode_tensor, lambda data: pillow_lic.decode_batch([data])):
        with pytest.raises(UnidentifiedImageError):
            decode(b"no picture")
        with pytest.raises(OSError, match="checksum"):
            decode(bytes(broken))
        with pytest.raises(FileNotFoundError):
            decode("nowhere.lic")
    for device in ("cuda:9", "toaster"):
        with pytest.raises(ValueError, match="device"):
            pillow_lic.decode_batch([data], device=device)
        with pytest.raises(ValueError, match="device"):
            pillow_lic.decode_tensor(data, device=device)
    for wrong in (torch.zeros(3, 16, 16), torch.zeros(16, 16, dtype=torch.uint8)):
        with pytest.raises(TypeError, match="tensors of pictures"):
            pillow_lic.encode_batch([wrong])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        pillow_lic.decode_tensor(data)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_dataset_with_workers(start: str, tmp_path: Path) -> None:
    photo = load("astronaut")
    for n in range(4):
        photo.crop((n, n, n + 80, n + 70)).save(tmp_path / f"{n}.lic")
    argv = [sys.executable, str(EXAMPLES / "dataset.py"), str(tmp_path), "--start", start]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"4 crops from 2 workers ({start})" in done.stdout
