from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pillow_lic import atomic


@pytest.mark.parametrize("existing", [True, False])
def test_what_fails_while_it_is_written_leaves_what_was_there(
    existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.lic"
    if existing:
        path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        atomic.write(str(path), b"new")
    assert str(caught.value) == f"[Errno 28] No space left on device: {str(path)!r}"
    assert [p.name for p in tmp_path.iterdir()] == (["a.lic"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_modes_and_links_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "a.lic", tmp_path / "link.lic"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    atomic.write(str(link), b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are files only here")
def test_a_pipe_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "pipe.lic"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    atomic.write(str(path), b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert path.is_fifo()


def test_what_must_not_be_changed_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.lic"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda name, mode: Path(name) != path)
    with pytest.raises(PermissionError):
        atomic.write(str(path), b"new")
    assert path.read_bytes() == b"old"


def test_a_folder_that_nothing_new_can_be_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.lic"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "open", refused)
    atomic.write(str(path), b"new")
    assert path.read_bytes() == b"new"


def test_another_owners_file_stays_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.lic"
    path.write_bytes(b"old")
    own = os.stat

    def theirs(name: object, **options: object) -> object:
        found = own(name, **options)  # type: ignore[arg-type, call-overload]
        values = list(found)
        values[4] += 1 if str(name) == str(path) else 0
        return os.stat_result(values)

    monkeypatch.setattr(os, "stat", theirs)
    monkeypatch.setattr(os, "chown", refused, raising=False)
    before = path.stat().st_ino
    atomic.write(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino == before  # written to, not replaced
    atomic.write(str(path), b"newer", str(tmp_path))  # whole or not at all
    assert path.read_bytes() == b"newer"
    assert path.stat().st_ino != before
    assert [p.name for p in tmp_path.iterdir()] == ["a.lic"]


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.lic"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError) as caught:
        atomic.write(str(path), b"new", str(tmp_path))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.lic"]


def refused(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout here")
def test_standard_output_is_a_file_name() -> None:
    code = "from pillow_lic import atomic; atomic.write('/dev/stdout', b'new')"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout == b"new"


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError) as caught:
        atomic.write(str(tmp_path / "a.lic"), b"new")
    assert caught.value.filename == str(tmp_path / "a.lic")


def test_renaming_that_fails_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace, refusals = tmp_path / "a.lic", os.replace, iter((True, True))
    path.write_bytes(b"old")

    def busy(source: str, target: str) -> None:
        if next(refusals, False):
            raise PermissionError(13, "Permission denied", source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(atomic, "PAUSES", (0, 0, 0))
    atomic.write(str(path), b"new", str(tmp_path))
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.lic"]
