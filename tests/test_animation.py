from __future__ import annotations

import gc
import warnings
from io import BytesIO
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import coded, pixels_of
from PIL import Image, ImageFile, ImageSequence
from PIL.PngImagePlugin import PngInfo

import pillow_lic
from pillow_lic import container
from pillow_lic.cli import main
from pillow_lic.container import Frame, Reader
from pillow_lic.header import Animation, Header


@pytest.fixture
def frames(photo: Image.Image) -> list[Image.Image]:
    return [photo.crop((x, 20, x + 90, 84)) for x in (20, 50, 80)]


@pytest.fixture
def film(frames: list[Image.Image]) -> bytes:
    return coded(frames[0], save_all=True, append_images=frames[1:], duration=[100, 200, 40], loop=3, quality=5)


@pytest.fixture
def expected(frames: list[Image.Image]) -> list[np.ndarray]:
    """Each frame's pixels, as a picture of its own has them."""
    return [pixels_of(coded(frame, quality=5)) for frame in frames]


def test_frames_come_back(frames: list[Image.Image], film: bytes) -> None:
    with Image.open(BytesIO(film)) as image:
        assert (image.n_frames, image.is_animated, image.tell(), image.info["loop"]) == (3, True, 0, 3)
        durations = []
        for index, frame in enumerate(ImageSequence.Iterator(image)):
            assert np.array_equal(np.asarray(frame), pixels_of(coded(frames[index], quality=5)))
            durations.append(frame.info["duration"])
        assert durations == [100, 200, 40]


def test_any_order_and_errors(expected: list[np.ndarray], film: bytes) -> None:
    image = Image.open(BytesIO(film))
    for index in (2, 0, 1, 1, 2):
        image.seek(index)
        assert image.tell() == index
        assert np.array_equal(np.asarray(image), expected[index])
    for wrong in (3, -1):
        with pytest.raises(EOFError):
            image.seek(wrong)
    with pytest.raises(TypeError):
        image.seek(0.0)  # type: ignore[arg-type]
    assert image.tell() == 2
    assert np.array_equal(np.asarray(image), expected[2])


def test_a_file_stays_open_until_it_is_closed(film: bytes, tmp_path: Path) -> None:
    path = tmp_path / "film.lic"
    path.write_bytes(film)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with Image.open(path) as image:
            image.load()
            image.seek(2)
            image.load()
        with pytest.raises(ValueError, match="closed"):
            image.seek(1)
        del image
        gc.collect()


def test_saving_over_itself_keeps_all_frames(film: bytes, tmp_path: Path) -> None:
    path = tmp_path / "film.lic"
    path.write_bytes(film)
    with Image.open(path) as image:
        image.save(path, save_all=True, quality=2)
    with Image.open(path) as image:
        assert image.info["quality"] == 2
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(image)] == [100, 200, 40]


def test_a_loaded_file_is_closed_and_goes_on(film: bytes, expected: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "film.lic"
    path.write_bytes(film)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = Image.open(path)
        image.load()
        path.unlink()
        image.seek(2)
        assert np.array_equal(image, expected[2])
        del image
        gc.collect()


def test_a_film_goes_on_when_its_file_object_is_closed(film: bytes, expected: list[np.ndarray]) -> None:
    source = BytesIO(film)
    image = Image.open(source)
    image.load()
    assert not source.closed  # it is the caller's
    source.close()
    image.seek(2)
    assert np.array_equal(image, expected[2])
    parser = ImageFile.Parser()
    parser.feed(film)
    parsed = parser.close()
    parsed.seek(1)
    assert np.array_equal(parsed, expected[1])


def test_a_loop_that_is_text(frames: list[Image.Image], tmp_path: Path) -> None:
    """A PNG's text may have any name."""
    text = PngInfo()
    text.add_text("loop", "yes")
    frames[0].save(tmp_path / "x.png", pnginfo=text)
    with Image.open(tmp_path / "x.png") as image:
        image.load()
        assert image.info["loop"] == "yes"
        data = coded(image, save_all=True, append_images=frames[1:])
    assert Image.open(BytesIO(data)).info["loop"] == 0


def test_durations_of_the_images_themselves(frames: list[Image.Image], tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[50, 60, 70], loop=2)
    with Image.open(path) as gif:
        gif.seek(1)
        data = coded(gif, save_all=True)
        assert gif.tell() == 1
    with Image.open(BytesIO(data)) as image:
        shown = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
        assert (shown, image.info["loop"]) == ([50, 60, 70], 2)


def test_one_mode_holds_all(frames: list[Image.Image]) -> None:
    clear = frames[1].copy()
    clear.putalpha(99)
    image = Image.open(BytesIO(coded(frames[0].convert("L"), append_images=[clear, frames[2]])))
    assert image.mode == "RGBA"
    found = [np.asarray(frame.copy())[0, 0, 3] for frame in ImageSequence.Iterator(image)]
    assert found == [255, 99, 255]


def test_frames_must_agree(frames: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="same size"):
        coded(frames[0], append_images=[frames[1].resize((8, 8))])
    with pytest.raises(ValueError, match="duration names 2 frames, but there are 3"):
        coded(frames[0], append_images=frames[1:], duration=[1, 2])
    with pytest.raises(ValueError, match="durations must lie"):
        coded(frames[0], append_images=frames[1:], duration=-5)


def test_durations_do_not_drift(frames: list[Image.Image]) -> None:
    many = [frames[n % 3] for n in range(6)]

    def shown(**options: object) -> list[int]:
        with Image.open(BytesIO(coded(many[0], append_images=many[1:], **options))) as image:
            return [frame.info["duration"] for frame in ImageSequence.Iterator(image)]

    assert shown(duration=1000 / 60) == [17, 16, 17, 17, 16, 17]
    assert shown(duration=[0.5] * 6) == [0, 1, 1, 0, 0, 1]
    with pytest.raises(TypeError, match="duration must be a number"):
        shown(duration="400000")
    arrays = np.stack([np.asarray(frame) for frame in many])
    data = iio.imwrite("<bytes>", arrays, extension=".lic", duration=1000 / 24)
    assert iio.immeta(data, extension=".lic", index=...)["duration"] == (42, 41, 42, 42, 41, 42)


@pytest.mark.parametrize(("loop", "error"), [(1.5, TypeError), ("0", TypeError), (-1, ValueError), (2**32, ValueError)])
def test_mistakes_are_told_before_the_work(loop: object, error: type[Exception], frames: list[Image.Image]) -> None:
    done: list[int] = []
    with pytest.raises(error, match="loop must"):
        coded(frames[0], append_images=frames[1:], loop=loop, progress=lambda n, _: done.append(n))
    with pytest.raises(ValueError, match="a LIC file takes at most"):
        coded(frames[0], xmp=bytes(2**24 + 1), progress=lambda n, _: done.append(n))
    assert not done
    with Image.open(BytesIO(coded(frames[0], append_images=frames[1:], loop=None))) as image:
        assert image.info["loop"] == 0


def test_a_verified_film_says_so(film: bytes) -> None:
    image = Image.open(BytesIO(film))
    image.verify()
    with pytest.raises(ValueError, match="open it again"):
        image.seek(1)


def test_transcoding_and_targets(film: bytes, frames: list[Image.Image]) -> None:
    other = pillow_lic.transcode(film, "none")
    before, after = (iio.imread(data, extension=".lic", index=...) for data in (film, other))
    assert np.array_equal(before, after)
    with Image.open(BytesIO(other)) as image:
        assert (image.info["loop"], image.info["duration"]) == (3, 100)
    assert 2900 < len(coded(frames[0], append_images=frames[1:], target_size=3000)) <= 3000


def test_imageio(frames: list[Image.Image]) -> None:
    arrays = np.stack([np.asarray(frame) for frame in frames])
    data = iio.imwrite("<bytes>", arrays, extension=".lic", is_batch=True, duration=[7, 8, 9], loop=1, quality=5)
    back = iio.imread(data, extension=".lic", index=...)
    assert back.shape == arrays.shape
    assert np.array_equal(iio.imread(data, extension=".lic"), back[0])
    assert np.array_equal(iio.imread(data, extension=".lic", index=2), back[2])
    assert np.array_equal(np.stack(list(iio.imiter(data, extension=".lic"))), back)
    properties = iio.improps(data, extension=".lic", index=...)
    assert (properties.shape, properties.n_images, properties.is_batch) == (arrays.shape, 3, True)
    assert [iio.immeta(data, extension=".lic", index=n)["duration"] for n in range(3)] == [7, 8, 9]
    with pytest.raises(IndexError):
        iio.imread(data, extension=".lic", index=3)


def test_convert_keeps_frames(frames: list[Image.Image], tmp_path: Path) -> None:
    gif, lic, webp = (tmp_path / f"film.{kind}" for kind in ("gif", "lic", "webp"))
    frames[0].save(gif, save_all=True, append_images=frames[1:], duration=[50, 60, 70], loop=0)
    assert main(["convert", str(gif), str(lic)]) == 0
    assert main(["convert", str(lic), str(webp)]) == 0
    for path in (lic, webp):
        with Image.open(path) as image:
            assert image.n_frames == 3


# -- container -----------------------------------------------------------------------------


def header(frames: int) -> Header:
    return Header(30, 20, "RGB", b"modelid8", 700, frames=frames)


def test_a_frame_is_found_without_reading_those_before() -> None:
    frames = [Frame([bytes([n]) * 50]) for n in range(5)]
    data = container.write(header(5), {"xmp": b"x"}, frames, Animation(0, (1, 2, 3, 4, 5)))
    broken = bytearray(data)
    broken[data.index(b"\1" * 50)] = 9
    reader = Reader(BytesIO(broken))
    assert reader.metadata() == {"xmp": b"x"}
    for index in (4, 0, 3, 2):
        assert reader.frame(index) == frames[index]
    with pytest.raises(OSError, match="wrong checksum"):
        reader.frame(1)


def test_several_frames_and_their_times_belong_together() -> None:
    for count, animation in ((2, None), (1, Animation(0, (5,)))):
        reader = Reader(BytesIO(container.write(header(count), {}, [Frame([b"a"])] * count, animation)))
        with pytest.raises(OSError, match=r"belong together|ANIM chunk"):
            reader.metadata()
    for durations in ((1,), (1, 2, 3)):
        reader = Reader(BytesIO(container.write(header(2), {}, [Frame([b"a"])] * 2, Animation(0, durations))))
        with pytest.raises(OSError, match="damaged"):
            reader.metadata()


def test_missing_frames_are_an_error(film: bytes) -> None:
    start = film.rindex(b"FRAM")
    image = Image.open(BytesIO(film[:start]))
    image.seek(1)
    image.load()
    image.seek(2)
    with pytest.raises(OSError, match="truncated"):
        image.load()


def test_each_frame_is_whole_again(film: bytes) -> None:
    with Image.open(BytesIO(film)) as image:
        sizes = []
        for frame in ImageSequence.Iterator(image):
            assert frame.size == (90, 64)
            frame.thumbnail((20, 20))
            sizes.append(frame.size)
        assert sizes == [(20, 14)] * 3
        image.seek(1)
        image.putalpha(100)
        image.seek(2)
        assert (image.mode, image.size) == ("RGB", (90, 64))
        image.thumbnail((40, 40))
        image.seek(0)
        image.seek(2)
        assert np.asarray(image).shape == (64, 90, 3)


def test_drafts_of_all_frames(film: bytes) -> None:
    with pillow_lic.open(BytesIO(film), size=(45, 32)) as image:
        for frame in ImageSequence.Iterator(image):
            assert frame.size == (45, 32)
            frame.thumbnail((10, 10))
        image.seek(0)
        assert np.asarray(image).shape == (32, 45, 3)
