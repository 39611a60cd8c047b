"""What there is to convert, and what is done.

Beside the converted files the destination has a record, ``.lic-convert/sources.json``: of each target, what its
source looked like when its conversion was decided on, with which settings, and what lay there before.  It is
written before the first conversion, whole.  A target is done if it is there, is not what lay there before, and
its source looks as recorded: the moment that decides is the one at which the target appears, and nothing has
to be written down after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from pillow_lic.atomic import PARTIAL
from pillow_lic.batch.files import File, Info, changed, files_below, reaching, read, version, write
from pillow_lic.models.finding import identity_of, is_shipped, path_of
from pillow_lic.options import EncoderOptions
from pillow_lic.plugin import EXTENSION

FOLDER = ".lic-convert"
RECORD = f"{FOLDER}/sources.json"
RECORD_VERSION = 2
JOB = "job"

STUBS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"} | (set() if sys.platform == "win32" else {"WMF"}))
"""Formats that Pillow recognises and cannot decode."""


ONE_CASE = sys.platform in ("win32", "darwin")
"""Whether files whose names differ in case only are one file, as a rule."""


@dataclass(frozen=True)
class Settings:
    """What holds for all conversions of a job.

    suffix    extension of the targets: ".lic", or that of any format that Pillow writes
    options   the encoder's, for .lic targets
    psnr      also measure how near the target is to its source
    scratch   where partial files go
    threads   torch's threads for each conversion, None for as many as there are
    again     conversions may have been done by a worker that died later: look first
    job       its name, where workers may outlive whoever began it: they write nothing once it is over
    """

    suffix: str
    options: EncoderOptions
    scratch: File
    psnr: bool = False
    threads: int | None = None
    again: bool = False
    job: str | None = None

    def check_job(self) -> None:
        """``OSError`` if the job is over, or another one works in its folder."""
        with suppress(FileNotFoundError):
            if self.job is None or read(self.scratch.below(JOB)).decode() == self.job:
                return
        raise OSError("the job that asked for this is over")


@dataclass(frozen=True)
class Task:
    """One conversion; ``stale`` is what lies at the target's place and is to be replaced."""

    source: File
    target: File
    stale: str | None = None


class Origin(NamedTuple):
    """What a target is made from and how, in 16 letters each: where the source lies, the source, the settings."""

    where: str
    picture: str
    settings: str


class Entry(NamedTuple):
    """A target's line in the record: what it is made from and how, and what lay in its place before."""

    origin: Origin
    stale: str | None


@dataclass
class Plan:
    """What is to do, how many files are done, which cannot be done and why, and the record to write first: also where
    nothing is to do but sources ``moved``.
    """

    tasks: list[Task] = field(default_factory=list)
    done: int = 0
    moved: bool = False
    failures: list[tuple[File, str]] = field(default_factory=list)
    record: dict[str, Entry] = field(default_factory=dict)


def sources_of(
    sources: Iterable[File], suffix: str, unreadable: Callable[[OSError], None] = lambda _: None
) -> Iterator[tuple[str, File, Info]]:
    """Relative path, file and info of every source.

    In folders: pictures of any format for .lic targets, .lic files for others; hidden files and folders are
    left out.  A file that is named itself is taken as it is.  ``unreadable`` is told of folders that cannot be read.
    Raises ``FileNotFoundError``.
    """
    wanted = readable() if suffix == EXTENSION else frozenset({EXTENSION})
    for source in sources:
        if source.fs.isdir(source.path):
            for name, info in files_below(source, unreadable, hidden=False).items():
                path = PurePosixPath(name)
                if path.suffix.lower() in wanted and not any(part.startswith(".") for part in path.parts):
                    yield name, source.below(name), info
        elif source.fs.exists(source.path):
            yield source.name, source, source.fs.info(source.path)
        else:
            raise FileNotFoundError(f"there is no {source}")


def readable() -> frozenset[str]:
    """Extensions of the pictures that Pillow opens, without .lic."""
    extensions = Image.registered_extensions()  # which has Pillow know all its formats, if it did not yet
    opened = (Image.OPEN.keys() | {"MPO"}) - STUBS  # MPO's files begin as JPEG's, whose plugin finds out
    return frozenset(e for e, form in extensions.items() if form in opened) - {EXTENSION}


def make_plan(sources: Sequence[File], target: File, settings: Settings, *, overwrite: bool = False) -> Plan:
    """Decide what is to be converted; changes nothing."""
    # A store is asked once for all it has; a local folder may have a million other files, and is asked for each.
    there = None if isinstance(target.fs, LocalFileSystem) else files_below(target)
    plan, asked = Plan(record=_read_record(target)), _asked(settings)
    seen: dict[str, File] = {}

    def unreadable(error: OSError) -> None:
        plan.failures.append((File(LocalFileSystem(), str(error.filename)), f"cannot be read: {error.strerror}"))

    for name, source, info in sources_of(sources, settings.suffix, unreadable):
        place = str(PurePosixPath(name).with_suffix(settings.suffix))
        key = unicodedata.normalize("NFC", place).casefold() if ONE_CASE else place
        if key in seen:
            plan.failures.append((source, f"{seen[key]} becomes {place} already"))
            continue
        seen[key] = source
        own = target.below(place)
        try:
            if own.is_same(source):
                raise FileExistsError("would be replaced by its own conversion")
            found = own.info() if there is None else there.get(place)
            if found is not None and found["type"] == "directory":
                raise IsADirectoryError(f"{own} is a folder")
            task = _task(plan, place, Task(source, own), found, _origin(source, info, asked), overwrite, info)
        except OSError as error:
            plan.failures.append((source, str(error)))
            continue
        if task is None:
            plan.done += 1
        else:
            plan.tasks.append(task)
    return plan


def _task(
    plan: Plan, place: str, task: Task, found: Info | None, origin: Origin, overwrite: bool, source: Info
) -> Task | None:
    """What is to do for a target of which ``found`` is there, with its line in the record; None if it is done.

    Raises ``FileExistsError`` if what is there is nothing to replace.
    """
    shown = None if found is None else _shown(task.target, found)
    entry = plan.record.get(place)
    if found is not None and not overwrite:
        if _is_done(entry, origin, shown, found, source):
            if entry is not None and entry.origin != origin:  # it lies elsewhere by now
                plan.record[place], plan.moved = entry._replace(origin=origin), True
            return None
        if entry is None:
            raise FileExistsError(f"{task.target} is there and not of this command's making")
        if entry.origin.where != origin.where and entry.origin.picture != origin.picture:
            raise FileExistsError(f"{task.target} is there and made from another file; --overwrite replaces it")
    if overwrite or entry is None or entry.origin != origin:
        entry = plan.record[place] = Entry(origin, shown)
    return replace(task, stale=entry.stale)


@contextmanager
def recorded(target: File, plan: Plan, job: str | None = None) -> Iterator[None]:
    """Write the record before the work; clear away what died half written before and during it.

    A ``job`` of workers that may outlive this process is named there as long as it lasts.
    """
    folder = target.below(FOLDER)
    with reaching():
        _clear(folder, JOB)
        write_record(target, plan)
        if job is not None:
            write(folder.below(JOB), job.encode(), folder)
    try:
        yield
    finally:
        with reaching():
            _clear(folder, JOB)


def write_record(target: File, plan: Plan) -> None:
    """Write what is known of each target, if that is news."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(plan.record.items()))
    data = f'{{"version": {RECORD_VERSION}, "files": {{\n{lines}\n}}}}\n'.encode()
    there = target.below(RECORD)
    if not there.fs.exists(there.path) or read(there) != data:
        write(there, data, target.below(FOLDER))


def _clear(folder: File, *also: str) -> None:
    for name in files_below(folder):
        if name.endswith(PARTIAL) or name in also:
            folder.fs.rm_file(folder.below(name).path)


def is_done(task: Task) -> bool:
    """Whether another worker has done a task meanwhile."""
    fs, path = task.target
    fs.invalidate_cache()
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return False
    return _shown(task.target, info) != task.stale


def _shown(target: File, info: Info) -> str:
    """What tells one state of a target from another: its size and time.

    In whole seconds in stores, which tell fractions in a list of objects and none when they are asked for one.
    """
    moment = changed(info)
    return f"{info['size']} {int(moment) if moment is not None and target.appears_whole else moment}"


def _is_done(entry: Entry | None, origin: Origin, shown: str | None, target: Info, source: Info) -> bool:
    if entry is not None:
        return entry.origin[1:] == origin[1:] and shown != entry.stale  # wherever the source lies by now
    # Not of our making, or the record is lost: what is not older than its source counts as done, as with make.
    times = changed(target), changed(source)
    return times[0] is not None and times[1] is not None and times[0] >= times[1]


def _asked(settings: Settings) -> str:
    """What is asked of every target."""
    # Where and by how many threads a picture is coded is nothing that anybody asks of the result.
    options = None
    if settings.suffix == EXTENSION:  # what says no more than the defaults is left out: later options change nothing
        given = asdict(replace(settings.options, device=None, threads=None))
        usual = asdict(EncoderOptions())
        options = {name: value for name, value in given.items() if value != usual[name]}
        # A model of one's own may be another one under the same name; those that ship are what a version has.
        if (path := path_of(settings.options.model_name)) and not is_shipped(path):
            options["model"] = identity_of(path).hex()
    return _hash([settings.suffix, options])


def _origin(source: File, info: Info, asked: str) -> Origin:
    if isinstance(source.fs, LocalFileSystem):
        where: Any = os.path.realpath(source.path)
    else:  # of which there may be several: archives, servers
        where = [str(source), {k: v for k, v in source.fs.storage_options.items() if k in ("fo", "host", "port")}]
    return Origin(_hash(where), _hash([source.name, version(info)]), asked)


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


def _read_record(target: File) -> dict[str, Entry]:
    try:
        found = json.loads(read(target.below(RECORD)))
        if found["version"] != RECORD_VERSION:
            raise ValueError
        return {name: Entry(Origin(*origin), stale) for name, (origin, stale) in found["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{target.below(RECORD)} is no record of this version; remove it to begin anew") from None
