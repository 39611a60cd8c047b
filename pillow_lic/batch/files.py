"""Where files are: local paths, and every URL that fsspec has a filesystem for, in one form."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pillow_lic import atomic
from pillow_lic.atomic import PARTIAL

WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "oci", "memory"})
"""Protocols of stores where an object appears when all of it is there: no partial file, no rename."""

_HASHES = ("ETag", "etag", "md5Hash", "CRC")
_TIMES = (
    "mtime", "LastModified", "last_modified", "updated", "modified", "modificationTime", "modify", "created",
    "date_time",
)  # fmt: skip

Info = Mapping[str, Any]
"""What a filesystem tells about a file; every kind has names of its own for times and hashes."""


class File(NamedTuple):
    """A file or folder: its filesystem and its path there."""

    fs: AbstractFileSystem
    path: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (pickle.dumps(self.fs), self.path)

    def __str__(self) -> str:
        return self.path if isinstance(self.fs, LocalFileSystem) else str(self.fs.unstrip_protocol(self.path))

    def below(self, name: str) -> File:
        """What lies at a relative path in a folder."""
        return File(self.fs, f"{self.path.rstrip('/')}/{name}" if self.path else name)

    @property
    def appears_whole(self) -> bool:
        """Whether it lies in a store where an object appears when all of it is there."""
        own = self.fs.protocol
        return not WHOLE.isdisjoint((own,) if isinstance(own, str) else own)

    @property
    def folder(self) -> File:
        """Where it lies."""
        return File(self.fs, str(PurePosixPath(self.path).parent))

    def is_same(self, other: File) -> bool:
        """Whether both are one file or folder, whatever they are called."""
        if isinstance(self.fs, LocalFileSystem) and isinstance(other.fs, LocalFileSystem):
            try:
                return os.path.samefile(self.path, other.path)
            except OSError:  # one of them is not there, or out of reach
                return os.path.realpath(self.path) == os.path.realpath(other.path)
        return self == other

    def info(self) -> Info | None:
        """What its filesystem tells about it; None if it is not there."""
        try:
            found: Info = self.fs.info(self.path)
        except FileNotFoundError:
            return None
        return found

    @property
    def name(self) -> str:
        """Its own name, without where it lies."""
        return PurePosixPath(self.path).name


def _unpickled(filesystem: bytes, path: str) -> File:
    return File(_filesystem(filesystem, threading.get_ident()), path)


@lru_cache(maxsize=64)
def _filesystem(pickled: bytes, _thread: int) -> AbstractFileSystem:
    """A filesystem that another process has named, once in each thread: an archive's is made by reading it through."""
    found: AbstractFileSystem = pickle.loads(pickled)
    return found


@contextmanager
def reaching() -> Iterator[None]:
    """What stores say in exceptions of their own (no credentials, no connection) is an ``OSError`` here."""
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def locate(url: str | os.PathLike[str]) -> File:
    """The file at a path or URL; ``ImportError``, ``ValueError`` or ``OSError`` if nothing here can reach it."""
    text = os.fspath(url)
    if not text:
        raise ValueError("a path is empty")
    if "://" not in text:  # fsspec takes apart what has two colons
        local = LocalFileSystem()
        return File(local, local._strip_protocol(text))
    try:
        with reaching():
            return File(*url_to_fs(text))
    except ImportError as error:
        raise ImportError(f"{error} (pip install 'pillow-lic[remote]' brings s3:// and gs://)") from error


def files_below(
    folder: File, unreadable: Callable[[OSError], None] = lambda _: None, *, hidden: bool = True
) -> dict[str, Info]:
    """Every file in a folder and the folders in it, by relative path; empty if there is no such folder.

    Links are followed. ``unreadable`` is told of what cannot be read. Without ``hidden`` names that begin with a dot
    may be left out.
    """
    folder.fs.invalidate_cache()
    if isinstance(folder.fs, LocalFileSystem):
        found = dict(_walk(folder.path, frozenset(), unreadable, hidden=hidden))
    else:
        try:
            found = folder.fs.find(folder.path, detail=True)
        except FileNotFoundError:
            return {}
    start = len(folder.path.rstrip("/"))
    names = {name[start:].lstrip("/"): info for name, info in found.items() if info["type"] == "file"}
    return dict(sorted(names.items()))


def _walk(
    folder: str, above: frozenset[str], unreadable: Callable[[OSError], None], *, hidden: bool
) -> Iterator[tuple[str, Info]]:
    """Files below a local folder; fsspec's own walk leaves out links and what cannot be read."""
    here = os.path.realpath(folder)
    if here in above:
        return  # a link that leads back to where it came from
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    except OSError as error:
        unreadable(error)
        return
    for entry in found:
        path = f"{folder.rstrip('/')}/{entry.name}"
        try:
            if entry.name.startswith(".") and not hidden:
                continue
            if entry.is_dir():
                yield from _walk(path, above | {here}, unreadable, hidden=hidden)
            elif entry.is_file():
                stat = entry.stat()  # no more than is asked for: there may be a million
                yield path, {"type": "file", "size": stat.st_size, "mtime": stat.st_mtime}
        except FileNotFoundError:
            continue  # gone meanwhile
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link to itself
                unreadable(error)


def read(file: File) -> bytes:
    """The whole of a file."""
    data: bytes = file.fs.cat_file(file.path)
    return data


def write(file: File, data: bytes, scratch: File) -> None:
    """Make or replace a file at once: whoever looks sees the old one or the whole new one.

    ``scratch`` is a folder of the same filesystem for the partial file, where one is needed.
    """
    fs, path = file
    if file.appears_whole:
        fs.pipe_file(path, data)
        return
    for folder in (file.folder, scratch):
        fs.makedirs(folder.path, exist_ok=True)
    if isinstance(fs, LocalFileSystem):
        atomic.write(path, data, scratch.path)
        return
    partial = scratch.below(f".{uuid4().hex}{PARTIAL}").path
    try:
        fs.pipe_file(partial, data)
        _rename(fs, partial, path)
    except BaseException:
        if fs.exists(partial):
            fs.rm_file(partial)
        raise


def _rename(fs: AbstractFileSystem, partial: str, path: str) -> None:
    """Give a file another's name, also where renaming replaces nothing: some filesystems say so, some say nothing."""
    try:
        fs.mv(partial, path)
    except OSError:
        if not fs.exists(path):
            raise
    if fs.exists(partial):
        fs.rm_file(path)
        fs.mv(partial, path)
        if fs.exists(partial):
            raise OSError(f"{path} cannot be replaced")


def version(info: Info) -> str:
    """What changes when a file's content does: its size, and a hash of the content or else its time."""
    known = next((str(info[name]) for name in _HASHES if info.get(name)), None)
    return f"{info['size']} {known or changed(info)}"


def changed(info: Info) -> float | None:
    """When a file was made or last changed, in seconds of the epoch; None if its filesystem does not say."""
    for name in _TIMES:
        with suppress(ValueError):  # archives may have a month 0 for none, or a second 60
            match info.get(name):
                case datetime() as moment:
                    return moment.timestamp()
                case tuple() as moment:
                    return datetime(*moment).timestamp()
                case str() as moment if moment[:14].isdigit():  # FTP's
                    return datetime.strptime(moment[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
                case str() as moment:
                    return datetime.fromisoformat(moment).timestamp()
                case float() | int() as moment:
                    return moment / 1000 if name == "modificationTime" else float(moment)  # HDFS counts milliseconds
    return None
