from __future__ import annotations

import subprocess
import sys
import warnings
from io import BytesIO, UnsupportedOperation
from pathlib import Path

import imageio
import imageio.v2 as iio2
import imageio.v3 as iio
import numpy as np
import pytest
from conftest import coded, pixels_of, psnr
from PIL import ExifTags, Image

import pillow_lic
from imageio_plugin import registration

pillow_lic.register_lic_opener()


@pytest.fixture
def array(photo: Image.Image) -> np.ndarray:
    return np.asarray(photo)


def test_v2(array: np.ndarray, tmp_path: Path) -> None:
    imageio.imwrite(tmp_path / "x.lic", array, quality=4)
    with pytest.deprecated_call():  # imageio announces that this name will mean v3's
        back = imageio.imread(tmp_path / "x.lic")
    assert psnr(array, back) > 30
    assert len(iio2.mimread(tmp_path / "x.lic")) == 1
    with iio2.get_reader(tmp_path / "x.lic") as reader:
        assert reader.get_length() == 1
        assert np.array_equal(reader.get_data(0), back)


def test_v3_round_trip(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x.lic"
    iio.imwrite(path, array, quality=5)
    assert path.read_bytes() == coded(Image.fromarray(array), quality=5)
    back = iio.imread(path)
    assert np.array_equal(back, pixels_of(path.read_bytes()))
    back[0, 0, 0] = 1
    assert np.array_equal(np.stack(list(iio.imiter(path))), iio.imread(path, index=...))


def test_bytes(array: np.ndarray) -> None:
    data = iio.imwrite("<bytes>", array, extension=".lic", quality=3)
    assert data == coded(Image.fromarray(array), quality=3)
    assert np.array_equal(iio.imread(data, extension=".lic"), pixels_of(data))
    assert np.array_equal(iio.imread(data), pixels_of(data))
    assert np.array_equal(iio.imread(BytesIO(data), plugin="LIC"), pixels_of(data))
    old = iio2.imwrite("<bytes>", array, format="LIC", quality=3)
    assert old == data


def test_properties_and_metadata_do_not_decode(array: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = iio.imwrite("<bytes>", array, extension=".lic", exif=exif.tobytes(), xmp=b"<x/>")
    monkeypatch.setattr("pillow_lic.codec.decode", None)
    properties = iio.improps(data, extension=".lic")
    assert (properties.shape, properties.dtype, properties.is_batch) == (array.shape, np.uint8, False)
    assert properties.n_images is None
    batch = iio.improps(data, extension=".lic", index=...)
    assert (batch.shape, batch.n_images, batch.is_batch) == ((1, *array.shape), 1, True)
    metadata = iio.immeta(data, extension=".lic")
    assert metadata["exif"] == exif.tobytes()
    assert metadata["xmp"] == b"<x/>"
    assert metadata["mode"] == "RGB"


def test_rotate_and_mode(array: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = iio.imwrite("<bytes>", array, extension=".lic", exif=exif.tobytes())
    plain = iio.imread(data, extension=".lic")
    turned = iio.imread(data, extension=".lic", rotate=True)
    assert np.array_equal(turned, np.rot90(plain, -1))
    assert iio.imread(data, extension=".lic", mode="L").shape == array.shape[:2]


def test_grey(grey: Image.Image, tmp_path: Path) -> None:
    array = np.asarray(grey)
    iio.imwrite(tmp_path / "g.lic", array)
    assert iio.imread(tmp_path / "g.lic").shape == array.shape
    iio.imwrite(tmp_path / "h.lic", array[:, :, None])
    assert (tmp_path / "g.lic").read_bytes() == (tmp_path / "h.lic").read_bytes()


def test_imopen_with_the_plugin(array: np.ndarray, tmp_path: Path) -> None:
    with iio.imopen(tmp_path / "x.lic", "w", plugin="LIC") as file:
        file.write(array, quality=2)
    with iio.imopen(tmp_path / "x.lic", "r", plugin="LIC") as file:
        assert file.read().shape == array.shape
        with pytest.raises(OSError, match="opened for reading"):
            file.write(array)
        for kind in (IndexError, ValueError):  # v2's way and v3's
            with pytest.raises(kind, match="no index 1"):
                file.read(index=1)


def test_a_batch_of_one_is_a_picture(array: np.ndarray) -> None:
    assert iio.imwrite("<bytes>", [array], extension=".lic") == iio.imwrite("<bytes>", array, extension=".lic")
    with pytest.raises(ValueError, match="empty batch"):
        iio.imwrite("<bytes>", [], extension=".lic")


def test_frames_may_come_one_by_one(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x.lic"
    with iio2.get_writer(path) as writer:
        for shift in range(3):
            writer.append_data(np.roll(array, 8 * shift, axis=1))
    buffer = np.empty_like(array)
    with iio.imopen(tmp_path / "y.lic", "w", plugin="LIC") as file:
        for shift, duration in ((0, 40), (8, np.array([60]))):
            buffer[:] = np.roll(array, shift, axis=1)
            file.write(buffer, duration=duration, loop=2)
        buffer[:] = 0
    assert np.array_equal(iio.imread(path, index=0), iio.imread(tmp_path / "y.lic", index=0))
    assert np.array_equal(iio.imread(path, index=1), iio.imread(tmp_path / "y.lic", index=1))
    writer = iio2.get_writer("<bytes>", format=".lic")
    for shift in range(3):
        writer.append_data(np.roll(array, 8 * shift, axis=1))
    writer.close()
    assert writer.request.get_result() == path.read_bytes()
    assert iio.imread(path, index=...).shape == (3, *array.shape)
    about = iio.immeta(tmp_path / "y.lic", index=...)
    assert (about["duration"], about["loop"]) == ((40, 60), 2)


def test_frames_that_do_not_fit_leave_the_file_as_it_was(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x.lic"
    iio.imwrite(path, array)
    before = path.read_bytes()
    shapes = [array, array[::2]]
    with pytest.raises(ValueError, match="same size"):
        _write_each(path, shapes)
    assert path.read_bytes() == before


def test_a_closed_writer_takes_nothing(array: np.ndarray, tmp_path: Path) -> None:
    with iio.imopen(tmp_path / "x.lic", "w", plugin="LIC") as file:
        file.write(array)
    with pytest.raises(OSError, match="closed"):
        file.write(array)


def test_options_that_do_not_go_together_are_told_at_once(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x.lic"
    with iio.imopen(path, "w", plugin="LIC") as file:
        file.write(array, target_size=5000)
        with pytest.raises(ValueError, match="one of"):
            file.write(array, target_bpp=0.5)
    assert path.stat().st_size <= 5000


def _write_each(path: Path, frames: list[np.ndarray]) -> None:
    with iio.imopen(path, "w", plugin="LIC") as file:
        for frame in frames:
            file.write(frame)


def test_batches_are_told_by_their_shape(array: np.ndarray) -> None:
    stack = np.stack([array, array[::-1]])
    whole = iio.imwrite("<bytes>", stack, extension=".lic", is_batch=True)
    assert iio.imwrite("<bytes>", stack, extension=".lic") == whole
    assert iio.imwrite("<bytes>", stack[:1], extension=".lic") == iio.imwrite("<bytes>", array, extension=".lic")
    greys = iio.imwrite("<bytes>", stack[..., 0], extension=".lic", duration=None)
    assert iio.improps(greys, index=...).shape == stack[..., 0].shape
    with pytest.warns(DeprecationWarning, match="duration=50") as said:
        timed = iio.imwrite("<bytes>", stack, extension=".lic", fps=20)
    assert said[0].filename == __file__  # Python shows nobody what is deprecated in a library's own lines
    assert iio.immeta(timed, index=..., extension=".lic")["duration"] == (50, 50)


def test_what_was_just_written_can_be_read(array: np.ndarray) -> None:
    buffer = BytesIO()
    iio.imwrite(buffer, array, extension=".lic")
    assert iio.imread(buffer, plugin="LIC").shape == array.shape


def test_exif_tags_and_old_names(array: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Maker", 6
    data = iio.imwrite("<bytes>", array, extension=".lic", exif=exif)
    about = iio.immeta(data, extension=".lic", exclude_applied=False)
    assert (about["Make"], about["Orientation"]) == ("Maker", 6)
    assert "Orientation" not in iio.immeta(data, extension=".lic")
    with pytest.warns(DeprecationWarning, match="use mode") as said:
        assert iio.imread(data, extension=".lic", pilmode="L", writeable_output=False).shape == array.shape[:2]
    assert said[0].filename == __file__
    broken = iio.imwrite("<bytes>", array, extension=".lic", exif=b"no exif")
    assert iio.immeta(broken, extension=".lic")["exif"] == b"no exif"
    assert iio.imread(broken, extension=".lic", rotate=True).shape == array.shape
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    turned = iio.imwrite("<bytes>", array, extension=".lic", xmp=xmp)
    assert iio.imread(turned, plugin="LIC", rotate=True).shape == (array.shape[1], array.shape[0], 3)


def test_metadata_may_be_passed_on(array: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    data = iio.imwrite("<bytes>", array, extension=".lic", exif=exif, quality=3)
    about = iio.immeta(data, extension=".lic")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = iio.imwrite("<bytes>", array, extension=".lic", **about)
    assert iio.immeta(again, extension=".lic") == about
    with pytest.warns(UserWarning, match="unknown option 'mode'"):
        iio.imwrite("<bytes>", array, extension=".lic", **(about | {"mode": "L"}))


def test_truth_values_are_black_and_white(array: np.ndarray) -> None:
    bright = array[:, :, 1] > 128
    data = iio.imwrite("<bytes>", bright, extension=".lic")
    assert data == iio.imwrite("<bytes>", np.where(bright, 255, 0).astype(np.uint8), extension=".lic")


def test_metadata_are_checked_as_pillow_checks_them(array: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    data = iio.imwrite("<bytes>", array, extension=".lic", exif=exif, xmp="<x/>")
    assert iio.immeta(data, extension=".lic")["exif"] == exif.tobytes()
    assert iio.immeta(data, extension=".lic")["xmp"] == b"<x/>"
    with pytest.raises(TypeError, match="exif must be bytes"):
        iio.imwrite("<bytes>", array, extension=".lic", exif=5)


def test_bad_input_leaves_no_file(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x.lic"
    with pytest.raises(TypeError, match="uint8"):
        iio.imwrite(path, array.astype(np.float32))
    with pytest.raises(ValueError, match="quality"):
        iio.imwrite(path, array, quality=9)
    with pytest.warns(UserWarning, match="unknown option"):
        iio.imwrite(tmp_path / "y.lic", array, qualty=3)
    assert not path.exists()


def test_damage_is_an_os_error_and_other_files_are_left_to_others(array: np.ndarray, tmp_path: Path) -> None:
    data = bytearray(coded(Image.fromarray(array)))
    data[-20] ^= 1
    with pytest.raises(OSError, match="wrong checksum"):
        iio.imread(bytes(data), extension=".lic")
    Image.fromarray(array).save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "named.lic")
    assert np.array_equal(iio.imread(tmp_path / "named.lic"), array)
    with pytest.raises(OSError, match="can not handle"):
        iio.imread(tmp_path / "named.lic", plugin="LIC")


@pytest.mark.parametrize(
    "imports", ["import imageio, pillow_lic", "import pillow_lic, imageio", "import imageio.v3, pillow_lic"]
)
def test_registration_in_any_order(imports: str, tmp_path: Path, small: Image.Image) -> None:
    path = tmp_path / "x.lic"
    path.write_bytes(coded(small))
    code = (
        f"{imports}, sys; from imageio.config import known_plugins, known_extensions as k;"
        "assert 'LIC' in known_plugins and len(k['.lic']) == 1;"
        "import imageio.config as c; assert 'SourceFileLoader' in type(c.__loader__).__name__;"
        "assert imageio.v3.improps(sys.argv[1]).shape == (50, 60, 3)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)


def test_reading_about_a_file_needs_no_torch(tmp_path: Path, small: Image.Image) -> None:
    path = tmp_path / "x.lic"
    path.write_bytes(coded(small))
    code = (
        "import sys, imageio.v3 as iio, pillow_lic; iio.improps(sys.argv[1]); iio.immeta(sys.argv[1])\n"
        "file = iio.imopen(sys.argv[1], 'r'); assert file.properties().shape == (50, 60, 3)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")  # also of a reader that nobody closes


def test_a_writer_that_nobody_closes_is_written_at_exit(tmp_path: Path) -> None:
    path = tmp_path / "x.lic"
    code = (
        "import sys, numpy as np, imageio.v3 as iio, pillow_lic\n"
        "file = iio.imopen(sys.argv[1], 'w'); file.write(np.zeros((20, 30, 3), np.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert iio.imread(path).shape == (20, 30, 3)


def test_streams_that_cannot_seek(array: np.ndarray) -> None:
    class Stream(BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise UnsupportedOperation("seek")

        tell = seek

    data = coded(Image.fromarray(array))
    assert np.array_equal(iio.imread(Stream(data), extension=".lic"), iio.imread(data, extension=".lic"))


def test_a_function_that_gives_no_mask(array: np.ndarray, tmp_path: Path) -> None:
    iio.imwrite(tmp_path / "x.lic", array, roi=lambda im: None)
    assert (tmp_path / "x.lic").read_bytes() == coded(Image.fromarray(array))


def test_an_imageio_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed() -> None:
        raise AttributeError("no such table")

    monkeypatch.setattr(registration, "register", changed)
    with pytest.warns(UserWarning, match="knows no .lic files: AttributeError: no such table"):
        registration.register_when_imported()
