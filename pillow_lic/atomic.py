"""Files that are replaced at once: whoever looks sees the old one or the whole new one."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from uuid import uuid4

PARTIAL = ".partial"
PAUSES = (0.02, 0.05, 0.1, 0.2) if os.name == "nt" else ()
"""Seconds to wait before renaming is tried again."""


def write(path: str, data: bytes, scratch: str | None = None) -> None:
    """Make or replace a local file by way of a partial one in the folder ``scratch``, or beside it.

    Its owner and who may read it stay, and a symbolic link stays one; of hard links the others keep the old file. What
    is no ordinary file (a pipe, a device) is written to as it is. So is a file that may be written to and not be
    replaced (in a folder that nothing new can be made in, or while another program has it open where the system minds),
    or not under its owner's name, unless there is a folder for partial files: who names one wants files whole or not at
    all.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        return _fill(path, data)
    path = os.path.realpath(path)
    old = os.stat(path) if os.path.exists(path) else None
    if old is not None and not os.access(path, os.W_OK):  # a new file could take the place of one not to be changed
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    beside = os.path.dirname(path)
    partial = os.path.join(scratch or beside, f".{uuid4().hex}{PARTIAL}")
    try:
        _make(partial, data, old, keep_owner=scratch is None)
        _replace(partial, path)
    except OSError as error:
        if error.errno == errno.EXDEV and scratch not in (None, beside):  # a link to another filesystem
            write(path, data, beside)
        elif old is not None and isinstance(error, PermissionError) and scratch is None:
            _fill(path, data)
        else:
            raise OSError(error.errno, error.strerror, path) from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _replace(partial: str, path: str) -> None:
    """Rename; Windows refuses while a scanner or indexer looks at either file, as it does for some moments."""
    for pause in PAUSES:
        with suppress(PermissionError):
            return os.replace(partial, path)
        time.sleep(pause)
    os.replace(partial, path)


def _make(path: str, data: bytes, old: os.stat_result | None, *, keep_owner: bool) -> None:
    """A new file on the disk, with an old one's mode, and its owner: as a must, or if it may be."""
    # Nobody else reads what takes a private file's place.
    mode = 0o666 if old is None else 0o600
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, mode), "wb") as fp:
        fp.write(data)
        fp.flush()
        os.fsync(fp.fileno())
    if old is None:
        return
    if hasattr(os, "chown"):
        new = os.stat(path)
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            with suppress(*() if keep_owner else (PermissionError,)):
                os.chown(path, old.st_uid, old.st_gid)
    os.chmod(path, stat.S_IMODE(old.st_mode))


def _fill(path: str, data: bytes) -> None:
    with open(path, "wb") as fp:
        fp.write(data)
