from __future__ import annotations

from pathlib import Path

import PIL
import pytest
from conftest import coded, load
from PIL import ExifTags, Image, ImageSequence, PngImagePlugin, TiffImagePlugin

from pillow_lic.batch.files import locate
from pillow_lic.batch.plan import Settings, Task
from pillow_lic.batch.worker import convert
from pillow_lic.options import EncoderOptions

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">\xc3\xa4</x:xmpmeta>'


@pytest.fixture
def picture() -> Image.Image:
    return load("astronaut").crop((40, 20, 104, 68))


def converted(source: Path, target: Path, *, psnr: bool = False) -> Image.Image:
    """A file converted into another, opened and loaded."""
    settings = Settings(target.suffix, EncoderOptions(context="none"), locate(target.parent), psnr)
    convert(Task(locate(source), locate(target)), settings)
    image = Image.open(target)
    image.load()
    return image


@pytest.mark.parametrize("name", ["film.webp", "film.png", "film.gif", "film.avif"])
def test_a_film_keeps_its_times(picture: Image.Image, name: str, tmp_path: Path) -> None:
    frames = [picture.rotate(angle) for angle in (0, 90, 180)]
    times = [200, 40, 100]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=times, loop=0)
    film = converted(tmp_path / name, tmp_path / "film.lic")
    assert film.info["loop"] == 0
    assert [frame.info["duration"] for frame in ImageSequence.Iterator(film)] == times
    back = converted(tmp_path / "film.lic", tmp_path / "back.webp")
    found = []
    for frame in ImageSequence.Iterator(back):
        frame.load()
        found.append(frame.info["duration"])
    assert found == times


def test_a_gif_that_is_played_once(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "once.gif", save_all=True, append_images=[picture.rotate(90)], duration=50)
    assert converted(tmp_path / "once.gif", tmp_path / "once.lic").info["loop"] == 1


def test_previews_are_no_frames(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[picture.resize((16, 12))])
    with Image.open(tmp_path / "phone.jpg") as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    assert converted(tmp_path / "phone.jpg", tmp_path / "phone.lic", psnr=True).n_frames == 1


def test_a_tiff_keeps_what_tells_about_the_picture(picture: Image.Image, tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.Make], tags[ExifTags.Base.Copyright] = "Maker", "nobody"
    tags[ExifTags.IFD.Exif] = {int(ExifTags.Base.ISOSpeedRatings): 400}
    tags[700] = XMP
    tags[34377] = b"8BIM" + bytes(5000)
    if PIL.__version__ >= "12":  # older ones cannot read such files of their own
        picture = picture.convert("YCbCr")
    picture.save(tmp_path / "x.tif", tiffinfo=tags, dpi=(300, 300))
    image = converted(tmp_path / "x.tif", tmp_path / "x.lic")
    exif = image.getexif()
    assert (exif[ExifTags.Base.Make], exif[ExifTags.Base.Copyright]) == ("Maker", "nobody")
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
    assert len(image.info["exif"]) < 300
    assert set(exif) <= {ExifTags.Base.Make, ExifTags.Base.Copyright, ExifTags.IFD.Exif}
    assert (image.info["xmp"], image.info["dpi"]) == (XMP, (300, 300))
    back = converted(tmp_path / "x.lic", tmp_path / "back.tif")
    assert (back.mode, back.info["xmp"]) == ("RGB", XMP)
    assert back.getexif()[ExifTags.Base.Make] == "Maker"
    assert back.tobytes() == image.tobytes()


@pytest.mark.parametrize("tags", [{271: "Maker"}, {271: "Maker", 315: "somebody", 306: "now", 305: "soft"}])
def test_a_tiff_of_few_tags(picture: Image.Image, tags: dict[int, str], tmp_path: Path) -> None:
    picture.save(tmp_path / "x.tif", tiffinfo=tags)
    assert dict(converted(tmp_path / "x.tif", tmp_path / "x.lic").getexif()) == tags


def test_a_resolution_that_divides_by_zero(picture: Image.Image, tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.XResolution] = tags[ExifTags.Base.YResolution] = TiffImagePlugin.IFDRational(1, 0)
    tags[ExifTags.Base.ResolutionUnit] = 2
    picture.save(tmp_path / "x.tif", tiffinfo=tags)
    image = converted(tmp_path / "x.tif", tmp_path / "x.lic")
    assert image.size == picture.size
    assert "dpi" not in image.info


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_metadata_that_no_format_has_room_for(picture: Image.Image, suffix: str, tmp_path: Path) -> None:
    picture.save(tmp_path / "x.lic", exif=b"Exif\0\0garbage", dpi=(-5, 1e300))
    image = converted(tmp_path / "x.lic", tmp_path / f"x{suffix}")
    assert image.size == picture.size
    assert image.info.get("dpi", (1, 1)) != (-5, 1e300)


def test_exif_by_way_of_a_format_without_its_first_bytes(picture: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "x.webp", exif=exif)
    converted(tmp_path / "x.webp", tmp_path / "x.lic")
    assert converted(tmp_path / "x.lic", tmp_path / "x.jpg").getexif()[ExifTags.Base.Orientation] == 6


def test_metadata_longer_than_a_segment_of_a_jpeg_file(picture: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "a" * 65000
    longest = {"xmp": b"x" * 65504, "comment": "c" * 65504, "exif": exif}
    for name, value in longest.items():  # versions of Pillow before 13 take no two of them
        picture.save(tmp_path / f"{name}.lic", **{name: value})
        kept = converted(tmp_path / f"{name}.lic", tmp_path / f"{name}.jpg")
        expected = {"xmp": b"x" * 65504, "comment": b"c" * 65504, "exif": exif.tobytes()}[name]
        assert kept.info[name] == expected, name
    exif[ExifTags.Base.Artist] = "a" * 66000
    picture.save(tmp_path / "y.lic", xmp=b"x" * 65505, comment="\u00f6" * 33000, exif=exif)
    assert not {"xmp", "comment", "exif"} & converted(tmp_path / "y.lic", tmp_path / "y.jpg").info.keys()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "z.lic", exif=exif)
    assert dict(converted(tmp_path / "z.lic", tmp_path / "z.jpg").getexif()) == {ExifTags.Base.Orientation: 6}


def test_xmp_and_comment_go_to_every_format(picture: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    (tmp_path / "x.lic").write_bytes(coded(picture, xmp=XMP, comment="a n\u00f6te", exif=exif, dpi=(72, 72)))
    found = {
        suffix: converted(tmp_path / "x.lic", tmp_path / f"x.{suffix}") for suffix in ("png", "tif", "jpg", "webp")
    }
    for suffix, image in found.items():
        assert image.info["xmp"].rstrip(b"\0") == XMP, suffix
        assert image.getexif()[ExifTags.Base.Artist] == "somebody", suffix
    assert found["png"].info["Comment"] == "a n\u00f6te"
    assert found["jpg"].info["comment"] == "a n\u00f6te".encode()
    assert found["tif"].getexif()[ExifTags.Base.ImageDescription].encode("latin-1") == "a n\u00f6te".encode()
    assert converted(tmp_path / "x.png", tmp_path / "again.lic").info["comment"] == "a n\u00f6te".encode()


def test_cmyk_profiles_stay_behind(picture: Image.Image, tmp_path: Path) -> None:
    profile = bytes(16) + b"CMYK" + bytes(108)
    picture.convert("CMYK").save(tmp_path / "print.jpg", icc_profile=profile)
    assert "icc_profile" not in converted(tmp_path / "print.jpg", tmp_path / "print.lic").info
    picture.save(tmp_path / "screen.jpg", icc_profile=profile.replace(b"CMYK", b"RGB "))
    assert converted(tmp_path / "screen.jpg", tmp_path / "screen.lic").info["icc_profile"][16:20] == b"RGB "


@pytest.mark.parametrize("keyword", ["exif", "Raw profile type exif"])
def test_texts_of_a_png_that_look_like_exif(picture: Image.Image, keyword: str, tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text(keyword, "no hex", zip=True)
    picture.save(tmp_path / "x.png", pnginfo=texts)
    assert converted(tmp_path / "x.png", tmp_path / "x.lic").size == picture.size
