from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import coded, load
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import pillow_lic
from pillow_lic import EncoderOptions
from pillow_lic.batch import Summary, convert, engines, plan
from pillow_lic.batch.files import File, changed, locate, read, write
from pillow_lic.batch.plan import RECORD
from pillow_lic.batch.worker import convert_all
from pillow_lic.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A tree of three small pictures, and what is none."""
    folder = tmp_path / "photos"
    (folder / "trip" / "day 1").mkdir(parents=True)
    (folder / ".thumbnails").mkdir()
    image = load("astronaut")
    for n, name in enumerate(("a.png", "trip/b.JPG", "trip/day 1/c.webp", ".thumbnails/d.png", "trip/._e.png")):
        image.crop((40 * n, 20, 40 * n + 48, 60)).save(folder / name)
    (folder / "readme.txt").write_text("no picture")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, without the record."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop(RECORD, None)
    return found


def counts(summary: Summary) -> tuple[int, int, int]:
    return summary.converted, summary.skipped, len(summary.failures)


def test_a_tree_is_kept_and_done_once(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = convert([photos], out, jobs=1)
    assert counts(first) == (3, 0, 0)
    made = files(out)
    assert sorted(made) == ["a.lic", "trip/b.lic", "trip/day 1/c.lic"]
    with Image.open(photos / "a.png") as image:
        assert made["a.lic"] == coded(image)
    assert first.bytes_after == sum(map(len, made.values()))
    assert first.bytes_before == sum((photos / n).stat().st_size for n in ("a.png", "trip/b.JPG", "trip/day 1/c.webp"))
    times = {name: (out / name).stat().st_mtime_ns for name in made}
    assert counts(convert([photos], out, jobs=1)) == (0, 3, 0)
    assert counts(convert([photos], out, jobs=1, overwrite=True)) == (3, 0, 0)
    assert files(out) == made
    assert all((out / name).stat().st_mtime_ns > times[name] for name in made)


def test_what_changed_is_converted_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert([photos], out, jobs=1)
    stat = (photos / "a.png").stat()
    load("camera").crop((0, 0, 64, 64)).save(photos / "a.png")
    os.utime(photos / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as old as before, another size
    (photos / "trip" / "b.JPG").touch()
    assert counts(convert([photos], out, jobs=1)) == (2, 1, 0)
    with Image.open(out / "a.lic") as image:
        assert image.size == (64, 64)
    (out / "a.lic").unlink()
    assert counts(convert([photos], out, jobs=1)) == (1, 2, 0)
    better = EncoderOptions(quality=6)
    assert counts(convert([photos], out, jobs=1, options=better)) == (3, 0, 0)
    assert counts(convert([photos], out, jobs=1, options=better)) == (0, 3, 0)
    assert counts(convert([photos], out, jobs=1)) == (3, 0, 0)


def test_without_a_record_times_decide(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert([photos], out, jobs=1)
    (out / RECORD).unlink()
    assert counts(convert([photos], out, jobs=1)) == (0, 3, 0)
    (out / RECORD).unlink(missing_ok=True)
    os.utime(out / "a.lic", (1, 1))
    older = convert([photos], out, jobs=1)
    assert counts(older) == (0, 2, 1)
    assert "not of this command's making" in str(older.failures[0].error)
    assert counts(convert([photos], out, jobs=1, overwrite=True)) == (3, 0, 0)
    assert counts(convert([photos], out, jobs=1)) == (0, 3, 0)


def test_an_interrupted_job_goes_on(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert([photos], out, jobs=1, options=EncoderOptions(quality=2))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert([photos], out, jobs=1, on_result=stop)
    done = (out / "a.lic").stat().st_ino
    (out / ".lic-convert" / ".left.partial").write_bytes(b"half")
    assert counts(convert([photos], out, jobs=1)) == (2, 1, 0)
    assert (out / "a.lic").stat().st_ino == done
    undisturbed = tmp_path / "undisturbed"
    convert([photos], undisturbed, jobs=1)
    assert files(out) == files(undisturbed)


def test_back_to_another_format(photos: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    assert convert([photos], out, jobs=1, psnr=True).psnr > 28
    summary = convert([out], back, to="png", jobs=1, psnr=True)
    assert counts(summary) == (3, 0, 0)
    assert summary.psnr is None  # nothing was lost
    with Image.open(back / "trip" / "day 1" / "c.png") as one, Image.open(out / "trip" / "day 1" / "c.lic") as other:
        assert one.tobytes() == other.tobytes()


def test_beside_the_sources(photos: Path) -> None:
    assert counts(convert([photos], photos, jobs=1)) == (3, 0, 0)
    assert (photos / "trip" / "b.lic").exists()
    assert counts(convert([photos], photos, jobs=1)) == (0, 3, 0)
    summary = convert([photos / "a.lic"], photos, jobs=1)
    assert "by its own conversion" in str(summary.failures[0].error)


def test_two_sources_of_one_target(photos: Path, tmp_path: Path) -> None:
    load("camera").save(photos / "a.jpg")
    out = tmp_path / "out"
    summary = convert([photos], out, jobs=1)
    assert counts(summary) == (0, 0, 1)
    assert "a.jpg becomes a.lic already" in str(summary.failures[0].error)
    assert not out.exists()
    assert counts(convert([photos], out, jobs=1, keep_going=True)) == (3, 0, 1)


def test_wrong_settings(photos: Path, tmp_path: Path) -> None:
    cases = {"no format that can be written": {"to": "xyz"}, "jobs must be": {"jobs": 0}}
    for message, settings in cases.items():
        with pytest.raises(ValueError, match=message):
            convert([photos], tmp_path / "out", **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use jobs=1"):
        convert([photos], "memory://x", jobs=2)
    with pytest.raises(FileNotFoundError, match="there is no"):
        convert([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "out" / ".lic-convert").mkdir(parents=True)
    (tmp_path / "out" / RECORD).write_text("{}")
    with pytest.raises(ValueError, match="no record of this version"):
        convert([photos], tmp_path / "out")


def test_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    argv = ["convert", str(photos), str(out), "--jobs", "1"]
    assert main([*argv, "--dry-run"]) == 0
    assert f"{photos / 'a.png'} -> {out / 'a.lic'}\n" in capsys.readouterr().out
    assert not out.exists()
    (photos / "b.png").write_bytes(b"no picture")
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert "1 converted, 0 already done, 1 failed" in captured.out
    assert f"cannot identify image file '{photos / 'b.png'}'" in captured.err
    assert main([*argv, "--keep-going", "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["converted"], summary["skipped"], summary["failed"]) == (2, 1, 1)
    assert summary["failures"][0]["source"] == str(photos / "b.png")
    (photos / "b.png").unlink()
    assert main(argv) == 0
    assert "0 converted, 3 already done, 0 failed" in capsys.readouterr().out
    assert main(["convert", str(photos / "a.png"), str(photos / "trip" / "b.JPG"), str(tmp_path), "--jobs", "1"]) == 0
    assert {"a.lic", "b.lic"} <= {p.name for p in tmp_path.iterdir()}


def test_command_refuses(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (["--to", "xyz"], "no format"),
        (["--engine", "dask"], "belong together"),
        (["--scheduler", "tcp://here:1"], "belong together"),
    ]
    for extra, message in cases:
        assert main(["convert", str(photos), str(tmp_path / "out"), *extra]) == 2, extra
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(photos), str(tmp_path / "out"), "--jobs", "0"])
    assert caught.value.code == 2
    assert "--jobs: must be at least 1" in capsys.readouterr().err


def test_places_that_are_none(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    with pytest.raises(OSError, match="BadZipFile"):
        convert(["zip://::broken.zip"], tmp_path / "out", jobs=1)
    with pytest.raises(ValueError, match="empty"):
        convert([""], tmp_path / "out", jobs=1)
    assert main(["convert", str(photos / "a.png"), "two::colons.lic"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.zip", "photos", "two::colons.lic"]


def test_processes(photos: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    assert counts(convert([photos], out, jobs=2, options=EncoderOptions(quality=3, threads=1))) == (3, 0, 0)
    convert([photos], alone, jobs=1, options=EncoderOptions(quality=3, threads=1))
    assert files(out) == files(alone)


def test_originals_are_not_replaced_on_the_way_back(photos: Path) -> None:
    original = (photos / "a.png").read_bytes()
    convert([photos], photos, jobs=1)
    back = convert([photos], photos, to="png", jobs=1, keep_going=True)
    assert counts(back) == (2, 0, 1)  # trip/b.JPG and day 1/c.webp have other names
    assert (photos / "a.png").read_bytes() == original


def test_a_file_is_not_replaced_by_its_own_conversion(photos: Path, tmp_path: Path) -> None:
    convert([photos], photos, jobs=1)
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    summary = convert([photos / "a.lic"], tmp_path / "link", jobs=1)
    assert "by its own conversion" in str(summary.failures[0].error)


def test_links_are_followed(photos: Path, tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    (album / "one.png").symlink_to(photos / "a.png")
    (album / "trip").symlink_to(photos / "trip", target_is_directory=True)
    (album / "again").symlink_to(album, target_is_directory=True)
    (album / "broken.png").symlink_to(tmp_path / "nothing")
    (album / "itself").symlink_to(album / "itself")
    out, disk = tmp_path / "out", tmp_path / "disk"
    out.mkdir()
    disk.mkdir()
    (out / "trip").symlink_to(disk, target_is_directory=True)
    assert counts(convert([album], out, jobs=1)) == (3, 0, 0)
    assert (disk / "b.lic").is_file()
    assert counts(convert([album], out, jobs=1)) == (0, 3, 0)


def test_folders_that_cannot_be_read(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith(("trip", ".thumbnails", "lost+found")):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "out" / "lost+found").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", locked)
    summary = convert([photos], tmp_path / "out", jobs=1, keep_going=True)
    assert counts(summary) == (1, 0, 1)
    assert summary.failures[0].source == str(photos / "trip")
    assert "Permission denied" in str(summary.failures[0].error)


def test_another_filesystem_behind_a_link(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def across(source: str, target: str) -> None:
        if ".lic-convert" in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    expected = tmp_path / "expected"
    convert([photos / "a.png"], expected, jobs=1)
    monkeypatch.setattr(os, "replace", across)
    locate_and_write(tmp_path / "out" / "a.lic", (expected / "a.lic").read_bytes())
    assert files(tmp_path / "out") == files(expected)


def locate_and_write(target: Path, data: bytes) -> None:
    write(locate(target), data, locate(target.parent / ".lic-convert"))


def test_names_that_differ_in_case(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("camera").crop((0, 0, 40, 40)).save(photos / "A.jpg")
    monkeypatch.setattr(plan, "ONE_CASE", True)
    summary = convert([photos], tmp_path / "out", jobs=1, keep_going=True)
    assert counts(summary) == (3, 0, 1)
    assert "already" in str(summary.failures[0].error)
    monkeypatch.setattr(plan, "ONE_CASE", False)
    assert counts(convert([photos], tmp_path / "out", jobs=1)) == (1, 3, 0)


def test_one_file(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["convert", str(photos / "a.png"), str(tmp_path / "a.lic")]
    assert main([*argv, "--dry-run"]) == 0
    assert f"-> {tmp_path / 'a.lic'}" in capsys.readouterr().out
    assert not (tmp_path / "a.lic").exists()
    assert main([*argv, "--json", "--psnr"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["converted"], summary["bytes_after"]) == (1, (tmp_path / "a.lic").stat().st_size)
    assert summary["psnr"] > 25
    assert main([*argv, "--to", "png"]) == 2
    (tmp_path / "a.lic").chmod(0o640)
    (tmp_path / "link.lic").symlink_to(tmp_path / "a.lic")
    assert main(["transcode", "--context", "none", str(tmp_path / "a.lic"), str(tmp_path / "link.lic")]) == 0
    assert (tmp_path / "link.lic").is_symlink()
    assert main(argv) == 0
    assert (tmp_path / "a.lic").stat().st_mode & 0o777 == 0o640


def test_another_source_of_the_same_name_replaces_nothing(tmp_path: Path) -> None:
    out, cards = tmp_path / "out", [tmp_path / "card1", tmp_path / "card2"]
    for side, card in zip((40, 48), cards, strict=True):
        card.mkdir()
        load("camera").crop((0, 0, side, side)).save(card / "DSC_1.jpg")
    assert counts(convert(cards[0], out, jobs=1)) == (1, 0, 0)  # a single source needs no list
    other = convert(str(cards[1]), out, jobs=1)
    assert counts(other) == (0, 0, 1)
    assert "made from another file" in str(other.failures[0].error)
    with Image.open(out / "DSC_1.lic") as image:
        assert image.size == (40, 40)
    moved = cards[0].rename(tmp_path / "moved")
    assert counts(convert([moved], out, jobs=1)) == (0, 1, 0)
    load("camera").crop((0, 0, 56, 56)).save(moved / "DSC_1.jpg")
    assert counts(convert([moved], out, jobs=1)) == (1, 0, 0)  # the record knows the new place by now
    assert counts(convert([cards[1]], out, jobs=1, overwrite=True)) == (1, 0, 0)


def test_what_a_job_that_is_over_had_begun_is_not_written(photos: Path, tmp_path: Path) -> None:
    source, target = locate(photos / "a.png"), locate(tmp_path / "out" / "a.lic")
    folder = locate(tmp_path / "out" / plan.FOLDER)
    settings = plan.Settings(".lic", EncoderOptions(), folder, job="one")
    task = plan.Task(source, target)
    todo = plan.Plan([task])
    with plan.recorded(locate(tmp_path / "out"), todo, "one"):
        (result,) = convert_all([task], settings)
        assert result.error is None
        (result,) = convert_all([task], replace(settings, job="another"))
        assert "is over" in str(result.error)
    (result,) = convert_all([task], settings)
    assert "is over" in str(result.error)
    assert list(files(tmp_path / "out")) == ["a.lic"]


def test_times_of_stores_are_compared_in_whole_seconds() -> None:
    place = locate("memory://bucket/a.lic")
    listed = {"size": 9, "LastModified": datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)}
    asked = {"size": 9, "LastModified": datetime(2026, 1, 2, 3, 4, 5, 0, UTC)}
    later = {"size": 9, "LastModified": datetime(2026, 1, 2, 3, 4, 6, 0, UTC)}
    assert plan._shown(place, listed) == plan._shown(place, asked) != plan._shown(place, later)


def test_what_libraries_of_stores_raise_is_a_message(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoCredentialsError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.isdir", refuse)
    assert main(["convert", str(photos), "memory://bucket"]) == 1
    assert "NoCredentialsError: Unable to locate credentials" in capsys.readouterr().err


def test_one_odd_place_stops_nothing_else(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "trip").write_text("a file where a folder should be")
    summary = convert([photos], out, jobs=1, keep_going=True)
    assert counts(summary) == (1, 0, 2)
    assert (out / "a.lic").exists()
    assert (out / "trip").read_text() == "a file where a folder should be"


def test_a_dry_run_says_what_would_happen(photos: Path, tmp_path: Path) -> None:
    load("camera").crop((0, 0, 40, 40)).save(photos / "a.jpg")
    assert convert([photos], tmp_path / "out", dry_run=True).planned == []
    assert len(convert([photos], tmp_path / "out", dry_run=True, keep_going=True).planned) == 3


def test_one_file_replaces_no_original(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lic, jpg = tmp_path / "a.lic", tmp_path / "b.jpg"
    assert main(["convert", str(photos / "a.png"), str(lic)]) == 0
    load("camera").crop((0, 0, 40, 40)).save(jpg)
    before = jpg.read_bytes(), lic.read_bytes()
    for source, target in ((photos / "a.png", jpg), (lic, jpg), (lic, lic)):
        for dry in ([], ["--dry-run"]):
            assert main(["convert", str(source), str(target), *dry]) == 1
            assert "--overwrite replaces it" in capsys.readouterr().err
    assert (jpg.read_bytes(), lic.read_bytes()) == before
    assert main(["convert", str(lic), str(jpg), "--overwrite"]) == 0
    with Image.open(jpg) as image, Image.open(lic) as source:
        assert image.size == source.size
    assert main(["convert", str(tmp_path / "nowhere.png"), str(lic), "--dry-run"]) == 1


def test_damage_of_any_kind_is_a_message(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = Image.effect_noise((300, 300), 60)
    noise.save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    second = data.index(b"IDAT", data.index(b"IDAT") + 1)
    data[second : second + 4] = b"\0\1\2\3"
    (tmp_path / "x.png").write_bytes(data)
    assert main(["convert", str(tmp_path / "x.png"), str(tmp_path / "x.lic")]) == 1
    assert "SyntaxError: broken PNG file" in capsys.readouterr().err


def test_psnr_is_of_what_is_seen(tmp_path: Path) -> None:
    photo = load("camera").crop((0, 0, 96, 96)).convert("RGB")
    logo = Image.effect_noise((96, 96), 90).convert("RGB")
    logo.paste(photo.crop((0, 0, 48, 48)), (0, 0))
    mask = Image.new("L", logo.size)
    mask.paste(255, (0, 0, 48, 48))
    logo.putalpha(mask)  # noise that nobody sees
    logo.save(tmp_path / "logo.png")
    found = convert([tmp_path / "logo.png"], tmp_path / "out", jobs=1, psnr=True).psnr
    assert found is not None
    assert found > 30


def test_films_count_their_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.effect_noise((40, 40), 50) for _ in range(4)]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:])
    assert convert([tmp_path / "film.webp"], tmp_path / "out", jobs=1).pixels == 4 * 40 * 40
    assert main(["info", str(tmp_path / "out" / "film.lic")]) == 0
    size = (tmp_path / "out" / "film.lic").stat().st_size
    told = capsys.readouterr().out
    assert "40 x 40, RGB, 4 frames" in told  # WebP knows no grey
    assert f"{8 * size / 6400:.4f} bpp" in told


def test_a_job_says_where_files_are_decoded(photos: Path, tmp_path: Path) -> None:
    convert([photos], tmp_path / "lic", jobs=1)
    summary = convert([tmp_path / "lic"], tmp_path / "png", to="png", jobs=1, options=EncoderOptions(device="cuda:77"))
    assert "cuda:77" in str(summary.failures[0].error)


def test_what_pillow_opens_is_taken() -> None:
    found = plan.readable()
    assert {".jpg", ".png", ".avif", ".mpo", ".tif"} <= found
    assert not {".lic", ".wmf", ".mpg"} & found


def test_times_as_filesystems_tell_them() -> None:
    assert changed({"date_time": (1980, 0, 0, 0, 0, 0)}) is None
    assert changed({"date_time": (1980, 1, 1, 0, 0, 0)}) is not None
    assert changed({"date_time": (1980, 1, 1, 0, 0, 60)}) is None
    assert changed({"mtime": "yesterday", "created": 7}) == 7
    assert changed({"modify": "20260102030405"}) == datetime(2026, 1, 2, 3, 4, 5).timestamp()
    assert changed({"modificationTime": 1_700_000_000_500}) == 1_700_000_000.5


class Stubborn(MemoryFileSystem):
    """A filesystem whose renaming replaces nothing, and says so or not."""

    protocol = "stubborn"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    silent = True

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if not self.exists(path2):
            super().mv(path1, path2)
        elif not self.silent:
            raise FileExistsError(path2)


@pytest.mark.parametrize("silent", [True, False])
def test_renaming_that_replaces_nothing(silent: bool) -> None:
    fs = Stubborn()
    fs.silent = silent
    target, scratch = File(fs, "/out/a.lic"), File(fs, "/out/.lic-convert")
    for data in (b"one", b"two"):
        write(target, data, scratch)
        assert fs.cat_file("/out/a.lic") == data
        assert fs.find("/out") == ["/out/a.lic"]


def test_an_archive_is_opened_once_in_a_process(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one", b"1")
        archive.writestr("two", b"2")
    folder = locate(f"zip://::{tmp_path / 'a.zip'}")
    one, two = (pickle.loads(pickle.dumps(folder.below(name))) for name in ("one", "two"))
    assert (read(one), read(two)) == (b"1", b"2")
    assert one.fs is two.fs


def test_options_that_say_no_more_than_the_defaults_change_nothing(photos: Path) -> None:
    """A later version's new option must not have everything converted again."""

    def asked(**given: Any) -> str:
        return plan._asked(plan.Settings(".lic", EncoderOptions(**given), locate(photos)))

    assert asked() == plan._hash([".lic", {}]) == asked(quality=4)
    assert asked(quality=5) == plan._hash([".lic", {"quality": 5.0}]) != asked()
    assert asked(model="mse") == plan._hash([".lic", {"model": "mse"}])


def test_another_model_under_the_same_name(photos: Path, tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden"
    model = Path(shutil.copy(golden / "lattice.safetensors", tmp_path / "own.safetensors"))
    options = EncoderOptions(model=str(model))
    assert counts(convert([photos], tmp_path / "out", options=options, jobs=1)) == (3, 0, 0)
    assert counts(convert([photos], tmp_path / "out", options=options, jobs=1)) == (0, 3, 0)
    shutil.copy(golden / "golden.safetensors", model)
    assert counts(convert([photos], tmp_path / "out", options=options, jobs=1)) == (3, 0, 0)


def test_cores_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "QUOTA", tmp_path / "cpu.max")
    everything = engines.cores()
    for said, found in (("max 100000", everything), ("50000 100000", 1), ("9999900000 100000", everything)):
        (tmp_path / "cpu.max").write_text(said)
        assert engines.cores() == found


def test_processes_that_never_begin(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "begin", partial(os._exit, 3))
    with pytest.raises(OSError, match="worker processes die before they begin"):
        convert([photos], tmp_path / "out", jobs=2, keep_going=True)
    assert files(tmp_path / "out") == {}


def test_a_default_device_is_one_in_worker_processes(photos: Path, tmp_path: Path) -> None:
    pillow_lic.set_defaults(device="cuda:99")
    assert counts(convert([photos], tmp_path / "out", jobs=2)) == (3, 0, 0)


def test_a_folder_in_a_target_s_place_is_a_failure(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "a.lic").mkdir(parents=True)
    summary = convert(photos, tmp_path / "out", keep_going=True)
    assert counts(summary) == (2, 0, 1)
    assert "a.lic is a folder" in str(summary.failures[0].error)
