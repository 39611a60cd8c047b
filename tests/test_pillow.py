from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import coded, load, pixels_of, psnr
from PIL import ExifTags, Image, ImageFile, ImageSequence, UnidentifiedImageError

import pillow_lic
from pillow_lic import codec
from pillow_lic.plugin import LicImageFile


def test_by_path_and_extension(photo: Image.Image, tmp_path: Path) -> None:
    for path in (tmp_path / "a.lic", str(tmp_path / "b.lic")):
        photo.save(path, quality=4)
        with Image.open(path) as image:
            assert image.format == "LIC"
            assert image.get_format_mimetype() == "image/x-lic"
            assert (image.size, image.mode) == (photo.size, "RGB")
            assert (image.n_frames, image.is_animated) == (1, False)
            assert psnr(photo, image) > 30


def test_upper_case_extension(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "A.LIC")
    with Image.open(tmp_path / "A.LIC") as image:
        assert image.format == "LIC"


def test_open_file_objects_stay_open(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.lic"
    with path.open("wb") as fp:
        photo.save(fp, "LIC", quality=4)
        assert not fp.closed
    with path.open("rb") as fp:
        image = Image.open(fp)
        image.load()
        assert not fp.closed
    data = path.read_bytes()
    assert np.array_equal(image, pixels_of(data))
    assert data == coded(photo, quality=4)


def test_a_file_that_does_not_begin_at_zero(photo: Image.Image) -> None:
    data = coded(photo)
    fp = BytesIO(b"12345" + data)
    fp.seek(5)
    assert np.array_equal(LicImageFile(fp), pixels_of(data))


def test_open_reads_the_header_only(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(photo)

    class Counting(BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            part = super().read(size)
            self.taken += len(part)
            return part

    fp = Counting(data)
    image = Image.open(fp)
    assert image.size == photo.size
    assert fp.taken < 100
    calls = []
    decode = codec.decode
    monkeypatch.setattr(codec, "decode", lambda *a, **k: calls.append(a) or decode(*a, **k))
    image.load()
    image.load()
    np.asarray(image)
    assert len(calls) == 1


def test_many_threads_load_once(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(photo)
    calls = []
    decode = codec.decode
    monkeypatch.setattr(codec, "decode", lambda *a, **k: calls.append(a) or decode(*a, **k))
    found: list[np.ndarray] = []
    for times in range(1, 6):
        image = Image.open(BytesIO(data))
        workers = [threading.Thread(target=lambda i=image: found.append(np.asarray(i))) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(calls) == times
    assert len(found) == 40
    assert all(np.array_equal(a, found[0]) for a in found)


def test_info(photo: Image.Image) -> None:
    info = Image.open(BytesIO(coded(photo, quality=2.5))).info
    assert info["quality"] == 2.5
    assert (info["context"], info["quantizer"]) == ("staircase", "h24")
    assert len(info["model_id"]) == 16


def test_metadata_are_kept(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "somebody"
    for given in (exif, exif.tobytes()):
        data = coded(photo, exif=given, icc_profile=b"profile" * 50, xmp=b"<xmp/>")
        with Image.open(BytesIO(data)) as image:
            assert image.info["exif"] == exif.tobytes()
            assert image.info["icc_profile"] == b"profile" * 50
            assert image.info["xmp"] == b"<xmp/>"
            assert image.getexif()[ExifTags.Base.Orientation] == 6
            assert image.getexif()[ExifTags.Base.Artist] == "somebody"


def test_what_nobody_passes_is_not_written(photo: Image.Image) -> None:
    """Where a photograph was taken above all: EXIF and XMP go along where the caller says so, as in WebP and AVIF."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    photo.info |= {"exif": exif.tobytes(), "xmp": b"<x/>", "dpi": (72, 72)}
    for data in (coded(photo), *pillow_lic.encode_batch([photo])):
        assert not {"exif", "xmp", "dpi"} & Image.open(BytesIO(data)).info.keys()


def test_exif_as_webp_files_have_it(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert exif.tobytes()[:6] == b"Exif\0\0"
    data = coded(photo, exif=exif.tobytes()[6:])
    assert Image.open(BytesIO(data)).info["exif"] == exif.tobytes()


def test_an_image_without_exif_gives_none(photo: Image.Image) -> None:
    assert coded(photo, exif=photo.getexif()) == coded(photo)
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    assert not len(exif)
    shown = Image.open(BytesIO(coded(photo, exif=exif))).getexif()
    assert shown.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"


def test_icc_profile_goes_along_unless_dropped(photo: Image.Image) -> None:
    photo.info["icc_profile"] = b"own"
    assert Image.open(BytesIO(coded(photo))).info["icc_profile"] == b"own"
    assert Image.open(BytesIO(coded(photo, icc_profile=b"new"))).info["icc_profile"] == b"new"
    assert "icc_profile" not in Image.open(BytesIO(coded(photo, icc_profile=None))).info
    assert "exif" not in Image.open(BytesIO(coded(photo, exif=b""))).info
    assert "icc_profile" not in Image.open(BytesIO(coded(photo, icc_profile="", exif=""))).info
    again = coded(Image.open(BytesIO(coded(photo, comment="mine", exif=b"Exif\0\0one", xmp=b"<x/>"))))
    kept = Image.open(BytesIO(again)).info
    assert (kept["icc_profile"], kept["comment"]) == (b"own", b"mine")
    assert not {"exif", "xmp"} & kept.keys()


def test_metadata_of_another_kind(photo: Image.Image) -> None:
    with pytest.raises(TypeError, match="icc_profile must be bytes, not int"):
        coded(photo, icc_profile=3)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_image(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="empty"):
        coded(Image.new("RGB", size))


@pytest.mark.parametrize("quality", [0, 9, float("nan"), "high"])
def test_a_bad_quality_leaves_no_file(photo: Image.Image, tmp_path: Path, quality: object) -> None:
    with pytest.raises((ValueError, TypeError), match="quality must be a number from 1 to 8"):
        photo.save(tmp_path / "a.lic", quality=quality)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_coding_leaves_no_new_file(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("planted")

    monkeypatch.setattr(codec, "encode", fail)
    with pytest.raises(RuntimeError, match="planted"):
        photo.save(tmp_path / "a.lic")
    assert list(tmp_path.iterdir()) == []


def test_unknown_options_warn_where_save_is_called(photo: Image.Image) -> None:
    with pytest.warns(UserWarning, match="unknown option 'qualty'") as caught:
        coded(photo, qualty=3)
    assert caught[0].filename.endswith("conftest.py")
    with pytest.warns(UserWarning, match="unknown option 'qualty'") as caught:
        coded(photo, qualty=3, save_all=True)
    assert caught[0].filename.endswith("conftest.py")


def test_save_all(photo: Image.Image) -> None:
    assert coded(photo, save_all=True) == coded(photo)
    assert coded(photo, save_all=True, append_images=[photo]) == coded(photo, append_images=[photo])


def test_frames(photo: Image.Image) -> None:
    image = Image.open(BytesIO(coded(photo)))
    image.seek(0)
    assert image.tell() == 0
    with pytest.raises(EOFError):
        image.seek(1)
    assert len(list(ImageSequence.Iterator(image))) == 1


def test_verify(photo: Image.Image, tmp_path: Path) -> None:
    data = coded(photo)
    path = tmp_path / "a.lic"
    path.write_bytes(data)
    image = Image.open(path)
    image.verify()
    with pytest.raises(OSError, match="cannot load"):
        image.load()
    damaged = bytearray(data)
    damaged[-20] ^= 4
    with pytest.raises(OSError, match="wrong checksum of the FRAM chunk"):
        Image.open(BytesIO(damaged)).verify()
    loaded = Image.open(BytesIO(data))
    loaded.load()
    with pytest.raises(RuntimeError, match="directly after open"):
        loaded.verify()


def test_what_is_not_ours() -> None:
    for data in (b"", b"\x8b", b"GIF89a", b"\x8bLIC\r\n\x1a", b"\x89LIC\r\n\x1a\n" + b"\0" * 60):
        with pytest.raises(UnidentifiedImageError):
            Image.open(BytesIO(data))


def test_a_cut_file(photo: Image.Image) -> None:
    data = coded(photo)
    with pytest.raises(OSError, match="truncated"):
        Image.open(BytesIO(data[:20]))
    for length in (60, len(data) // 2, len(data) - 1):
        image = Image.open(BytesIO(data[:length]))
        with pytest.raises(OSError, match="truncated"):
            image.load()


def test_a_load_that_failed_fails_again(photo: Image.Image) -> None:
    data = bytearray(coded(photo))
    data[-20] ^= 4
    image = Image.open(BytesIO(data))
    for _ in range(2):
        with pytest.raises(OSError, match="wrong checksum"):
            image.load()


def test_load_after_close(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.lic")
    image = Image.open(tmp_path / "a.lic")
    image.close()
    with pytest.raises(OSError, match="closed before its pixels were loaded"):
        image.load()


def test_decompression_bombs(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(BytesIO(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40000)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(BytesIO(data))


def test_one_warning_of_a_large_picture(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = photo.copy()
    seen.putalpha(photo.convert("L"))
    data = coded(seen)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photo.width * photo.height - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        image = Image.open(BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image.load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    image = Image.open(BytesIO(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    image.load()


def test_incremental_parser(photo: Image.Image) -> None:
    data = coded(photo)
    parser = ImageFile.Parser()
    for start in range(0, len(data), 700):
        parser.feed(data[start : start + 700])
    assert np.array_equal(parser.close(), pixels_of(data))


def test_pickle_and_copy(photo: Image.Image) -> None:
    data = coded(photo)
    again = pickle.loads(pickle.dumps(Image.open(BytesIO(data))))
    assert np.array_equal(again, pixels_of(data))
    assert np.array_equal(copy.copy(Image.open(BytesIO(data))), pixels_of(data))


@pytest.mark.parametrize("form", ["LIC", "AVIF", "GIF", "WEBP"])
def test_what_was_pickled_is_one_frame(photo: Image.Image, form: str) -> None:
    film = Image.open(BytesIO(coded(photo, append_images=[photo.rotate(180)])))
    again = pickle.loads(pickle.dumps(film))
    assert (again.n_frames, again.is_animated, again.tell()) == (1, False, 0)
    again.save(BytesIO(), form, save_all=True)
    again.seek(0)
    with pytest.raises(EOFError):
        again.seek(1)


def test_ordinary_operations(photo: Image.Image) -> None:
    image = Image.open(BytesIO(coded(photo)))
    assert image.resize((10, 10)).size == (10, 10)
    thumbnail = Image.open(BytesIO(coded(photo)))
    thumbnail.thumbnail((32, 32))
    assert thumbnail.size == (32, 24)
    assert Image.open(BytesIO(coded(photo))).convert("L").mode == "L"
    assert Image.open(BytesIO(coded(photo))).crop((10, 10, 30, 40)).size == (20, 30)


def test_a_folder_that_is_not_there(photo: Image.Image, tmp_path: Path) -> None:
    done: list[int] = []
    for image in (photo, Image.open(BytesIO(coded(photo)))):
        with pytest.raises(FileNotFoundError, match="missing"):
            image.save(tmp_path / "missing" / "x.lic", progress=lambda n, _: done.append(n))
    assert not done


def test_saving_over_the_file_that_is_open(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.lic"
    photo.save(path, quality=5)
    with Image.open(path) as image:
        image.save(path, quality=2)
    with Image.open(path) as image:
        assert image.info["quality"] == 2
        assert psnr(photo, image) > 25


@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_save_of_an_opened_image_leaves_what_was_there(
    photo: Image.Image, tmp_path: Path, existing: bool
) -> None:
    path, target = tmp_path / "a.lic", tmp_path / "b.lic"
    photo.save(path)
    if existing:
        target.write_bytes(path.read_bytes())
    for options in ({"quality": "high"}, {"target_psnr": 99}, {"format": "LIC", "target_size": 3}):
        with Image.open(path) as image, pytest.raises((TypeError, ValueError)):
            image.save(target, **options)
    assert target.exists() == existing
    assert not existing or target.read_bytes() == path.read_bytes()
    with Image.open(path) as image, pytest.warns(UserWarning, match="qualty") as caught:
        image.save(str(target), qualty=3)
    assert caught[0].filename == __file__
    with Image.open(path) as image:
        image.save(tmp_path / "c.png")
        image.save(tmp_path / "d.jpg", format="LIC")
    with Image.open(tmp_path / "d.jpg") as image:
        assert image.format == "LIC"


def test_a_disk_that_is_full_costs_no_file(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.lic"
    photo.save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with Image.open(path) as image, pytest.raises(OSError, match="No space"):
        image.save(path, quality=2)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.lic"]


def test_a_thumbnail_that_fails_changes_nothing(photo: Image.Image) -> None:
    with Image.open(BytesIO(coded(photo))) as image:
        with pytest.raises(ValueError, match="resampling"):
            image.thumbnail((40, 40), resample=99)  # type: ignore[arg-type]
        assert image.size == photo.size
        image.thumbnail((64, 64))
        assert max(image.size) == 64


def test_options_of_open_that_fail_leave_no_open_file(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.lic")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError):
            pillow_lic.open(tmp_path / "a.lic", size=640)  # type: ignore[arg-type]
        gc.collect()


def test_crops_while_another_thread_loads(photo: Image.Image) -> None:
    data = coded(photo, tile=128)
    errors: list[BaseException] = []

    def patches(image: LicImageFile) -> None:
        try:
            for left in range(0, 300, 7):
                assert image.crop((left, 9, left + 20, 40)).size == (20, 31)
        except BaseException as error:
            errors.append(error)

    for _ in range(3):
        with Image.open(BytesIO(data)) as image:
            assert isinstance(image, LicImageFile)
            threads = [threading.Thread(target=patches, args=(image,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            image.load()
            for thread in threads:
                thread.join()
    assert not errors


def test_no_warning_and_no_leaked_file(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.lic")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.open(tmp_path / "a.lic")
        image.load()
        assert image.fp is None
        del image


def test_registering_twice_changes_nothing() -> None:
    before = list(Image.ID), dict(Image.EXTENSION)
    pillow_lic.register_lic_opener()
    assert (list(Image.ID), dict(Image.EXTENSION)) == before
    assert Image.ID.count("LIC") == 1


def test_every_public_name_exists() -> None:
    assert all(hasattr(pillow_lic, name) for name in pillow_lic.__all__)


IMPORTS = """
import sys
import PIL.Image
before = set(sys.modules)
import pillow_lic
new = set(sys.modules) - before
heavy = {"torch", "numpy", "imageio", "constriction", "safetensors", "platformdirs"} & new
assert not heavy, heavy
from io import BytesIO
from PIL import Image
data = bytes.fromhex(sys.argv[1])
im = Image.open(BytesIO(data))
assert im.size == (60, 50), im.size
assert "torch" not in sys.modules
im.verify()
assert "torch" not in sys.modules
"""


DECODE = """
import sys, zlib
import numpy as np
import pillow_lic
import torch
from PIL import Image
torch.set_num_threads(int(sys.argv[2]))
sys.stdout.write(str(zlib.crc32(np.asarray(Image.open(sys.argv[1])).tobytes())))
"""


def test_another_process_decodes_the_same_pixels(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "x.lic", quality=3)
    import torch

    # The same number of threads: convolutions in float round differently with another.
    command = [sys.executable, "-c", DECODE, str(tmp_path / "x.lic"), str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    assert int(done.stdout) == zlib.crc32(pixels_of((tmp_path / "x.lic").read_bytes()).tobytes())


def test_importing_opening_and_verifying_need_no_torch(small: Image.Image) -> None:
    data = coded(small).hex()
    subprocess.run([sys.executable, "-c", IMPORTS, data], check=True, timeout=120)


def test_global_torch_state_is_left_alone(small: Image.Image) -> None:
    import torch

    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().sum().item(),
        )

    before = state()
    pixels_of(coded(small))
    assert state() == before


def test_quality_seven_is_good_on_a_second_photograph() -> None:
    image = load("coffee")
    assert psnr(image, pixels_of(coded(image, quality=7))) > 36
