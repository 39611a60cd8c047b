"""Other libraries that read images through Pillow or imageio; docs/ecosystem.md shows how."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coded, pixels_of, psnr
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import pillow_lic


@pytest.fixture
def folder(small: Image.Image, tmp_path: Path) -> Path:
    """Two classes with two pictures each, as torchvision's ImageFolder wants them."""
    for n, name in enumerate(("cats/a", "cats/b", "dogs/c", "dogs/d")):
        path = tmp_path / f"{name}.lic"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(coded(small.rotate(90 * n), quality=2))
    return tmp_path


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scikit_image(photo: Image.Image, tmp_path: Path) -> None:
    io = pytest.importorskip("skimage.io", reason="needs scikit-image")
    path = tmp_path / "x.lic"
    io.imsave(path, np.asarray(photo), quality=5)
    assert np.array_equal(io.imread(path), pixels_of(path.read_bytes()))
    assert io.imread(path, as_gray=True).shape == (photo.height, photo.width)
    assert len(io.ImageCollection(str(tmp_path / "*.lic"))) == 1


def test_matplotlib(photo: Image.Image, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="needs matplotlib")
    path = tmp_path / "x.lic"
    image.imsave(path, np.asarray(photo), pil_kwargs={"quality": 6})
    found = image.imread(path)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels_of(path.read_bytes()))
    assert psnr(found[:, :, :3], photo) > 33


class Folder(Dataset):  # type: ignore[type-arg]
    """What torchvision's ImageFolder with its default loader does: Pillow, one class a folder."""

    def __init__(self, root: Path) -> None:
        pillow_lic.register_lic_opener(device="cpu")
        self.files = sorted(root.rglob("*.lic"))
        self.classes = sorted({file.parent.name for file in self.files})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, n: int) -> tuple[torch.Tensor, int]:
        with self.files[n].open("rb") as file:
            image = Image.open(file).convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), self.classes.index(self.files[n].parent.name)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(folder: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    data = Folder(folder)
    loader = DataLoader(data, batch_size=1, num_workers=2 if method == "fork" else 1, multiprocessing_context=method)
    found = list(loader)
    assert [int(label) for _, label in found] == [0, 0, 1, 1]
    for (image, _), (expected, _) in zip(found, data, strict=True):  # type: ignore[call-overload]
        # Workers have one thread each: floats may round differently.
        assert np.abs(image[0].numpy().astype(int) - expected.numpy().astype(int)).max() <= 1


def size_of(path: Path) -> tuple[int, int]:
    pillow_lic.register_lic_opener()
    with Image.open(path) as image:
        image.load()
        return image.size


def save_and_open(path: Path) -> tuple[int, int]:
    Image.new("RGB", (40, 30), "teal").save(path, threads=1)
    return size_of(path)


@pytest.mark.parametrize(("method", "work"), [("spawn", size_of), ("fork", save_and_open)])
def test_process_pools(folder: Path, method: str, work: Callable[[Path], tuple[int, int]]) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    assert size_of(folder / "cats/a.lic") == (60, 50)  # the parent has used the codec already
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(work, sorted(folder.rglob("*.lic"))) == 4 * [(60, 50) if work is size_of else (40, 30)]


def test_datasets_of_hugging_face(folder: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    files = sorted(map(str, folder.rglob("*.lic")))
    data = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    assert data[0]["image"].format == "LIC"
    assert np.array_equal(data[2]["image"], pixels_of(Path(files[2]).read_bytes()))
    held = datasets.Dataset.from_dict({"image": [{"bytes": Path(files[0]).read_bytes(), "path": None}]})
    assert held.cast_column("image", datasets.Image())[0]["image"].size == (60, 50)
    # An image that was opened from a .lic file is stored as the file's own bytes.
    with Image.open(files[1]) as image:
        again = datasets.Image().encode_example(image)
    assert Image.open(BytesIO(again["bytes"] or Path(again["path"]).read_bytes())).size == image.size
