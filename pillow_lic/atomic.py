"""Files that are replaced at once: whoever looks sees the old one or the whole new one."""

from __future__ import annotations

import errno
import os
import shutil
from uuid import uuid4

PARTIAL = ".partial"


def write(path: str, data: bytes, scratch: str | None = None) -> None:
    """Make or replace a local file by way of a partial one in the folder ``scratch``, or beside it.

    Who may read it stays, a link stays one, and what is no ordinary file (a pipe, a device) is written to as it is.
    So is a file in a folder that nothing new can be made in.
    """
    path = os.path.realpath(path)
    there = os.path.exists(path)
    partial = os.path.join(scratch or os.path.dirname(path), f".{uuid4().hex}{PARTIAL}")
    if there and not os.path.isfile(path):
        return _fill(path, data)
    if there and not os.access(path, os.W_OK):  # a new file could take the place of one that is not to be changed
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    try:
        _fill(partial, data, durable=True)
        if there:
            shutil.copymode(path, partial)
        os.replace(partial, path)
    except OSError as error:
        if scratch is not None and error.errno == errno.EXDEV:  # the folder is a link to another filesystem
            write(path, data)
        elif there and isinstance(error, PermissionError) and not os.access(os.path.dirname(path), os.W_OK):
            _fill(path, data)
        else:
            raise
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _fill(path: str, data: bytes, *, durable: bool = False) -> None:
    with open(path, "wb") as fp:
        fp.write(data)
        if durable:
            fp.flush()
            os.fsync(fp.fileno())
