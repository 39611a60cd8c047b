"""Conversions to and from what is no local folder; the object store is moto's server on loopback."""

from __future__ import annotations

import logging
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from conftest import load

from pillow_lic import EncoderOptions
from pillow_lic.batch import convert
from pillow_lic.batch.files import changed
from pillow_lic.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Files are compared, and sums differ in their last bits with the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for n, name in enumerate(("a.png", "trip/b.png", "trip/c.jpg")):
        load("coffee").crop((30 * n, 10, 30 * n + 40, 60)).save(folder / name)
    return folder


@pytest.fixture
def expected(photos: Path, tmp_path: Path) -> dict[str, bytes]:
    out = tmp_path / "local"
    convert([photos], out, jobs=1)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.lic")}


@pytest.fixture(scope="module")
def store() -> Iterator[None]:
    """An S3 server, and the environment that leads everybody to it."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield
    running.stop()


@pytest.fixture
def bucket(store: None) -> str:
    name = f"photos-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def contents(url: str) -> dict[str, bytes]:
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    names = [name for name in fs.find(path) if name.endswith(".lic")]
    return {name.removeprefix(path).lstrip("/"): fs.cat_file(name) for name in names}


def test_an_object_store(photos: Path, expected: dict[str, bytes], bucket: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3")
    fs.put(str(photos), f"{bucket}/raw", recursive=True)
    out = f"{bucket}/lic"
    assert convert([f"{bucket}/raw"], out, jobs=1).converted == 3
    assert contents(out) == expected
    assert convert([f"{bucket}/raw"], out, jobs=1).skipped == 3
    fs.rm(f"{out}/trip/b.lic")
    fs.pipe_file(f"{bucket}/raw/a.png", (photos / "trip" / "b.png").read_bytes())
    changed = convert([f"{bucket}/raw"], out, jobs=1)
    assert (changed.converted, changed.skipped) == (2, 1)
    assert contents(out)["a.lic"] == expected["trip/b.lic"]
    fs.pipe_file(f"{bucket}/raw/a.png", (photos / "trip" / "b.png").read_bytes())  # the same once more
    assert convert([f"{bucket}/raw"], out, jobs=1).skipped == 3
    assert convert([out], tmp_path / "back", to="png", jobs=1).converted == 3
    assert sorted(p.name for p in (tmp_path / "back").rglob("*.png")) == ["a.png", "b.png", "c.png"]


def test_an_object_store_from_worker_processes(
    photos: Path, expected: dict[str, bytes], bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(photos), f"{bucket}/lic", "--jobs", "2", "--threads", "1"]) == 0
    assert contents(f"{bucket}/lic") == expected
    assert main(["convert", f"{bucket}/lic/a.lic", f"{bucket}/a.png"]) == 0
    assert f"{bucket}/lic/a.lic -> {bucket}/a.png" in capsys.readouterr().out
    assert main(["convert", str(photos), f"{bucket}-elsewhere/lic", "--jobs", "1"]) == 1


def test_memory(photos: Path, expected: dict[str, bytes]) -> None:
    out = f"memory://{uuid.uuid4().hex}/lic"
    assert convert([photos], out, jobs=1).converted == 3
    assert contents(out) == expected
    assert convert([photos], out, jobs=1).skipped == 3
    assert convert([photos], out, jobs=1, options=EncoderOptions(quality=2)).converted == 3
    assert contents(out) != expected


def test_an_archive(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    archive, out = tmp_path / "photos.zip", tmp_path / "out"
    with zipfile.ZipFile(archive, "w") as z:
        for path in sorted(photos.rglob("*.*")):
            z.write(path, path.relative_to(photos))
    source = f"zip://::{archive}"
    assert convert([source], out, jobs=1).converted == 3
    assert contents(str(out)) == expected
    assert convert([source], out, jobs=1).skipped == 3
    (out / ".lic-convert" / "sources.json").unlink()
    assert convert([source], out, jobs=1).skipped == 3  # by time


def test_another_archive_replaces_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for n in (1, 2):
        load("coffee").crop((0, 0, 40 + 8 * n, 50)).save(tmp_path / "DSC_1.png")
        with zipfile.ZipFile(tmp_path / f"card{n}.zip", "w") as z:
            z.write(tmp_path / "DSC_1.png", "DSC_1.png")
    assert convert([f"zip://::{tmp_path / 'card1.zip'}"], out, jobs=1).converted == 1
    other = convert([f"zip://::{tmp_path / 'card2.zip'}"], out, jobs=1)
    assert not other.converted
    assert "made from another file" in str(other.failures[0].error)


def test_times_of_ftp_are_universal() -> None:
    assert changed({"size": 1, "modify": "20240101000000"}) == 1704067200
