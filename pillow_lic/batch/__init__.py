"""Conversion of many files: folders, buckets, archives, on all cores or on a cluster.

    from pillow_lic.batch import convert

    if __name__ == "__main__":
        summary = convert(["photos/"], "s3://bucket/photos", options=EncoderOptions(quality=5))

An interrupted job is taken up by calling it again: see :mod:`pillow_lic.batch.plan`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from uuid import uuid4

from PIL import Image

from pillow_lic.batch import engines
from pillow_lic.batch.files import locate, reaching
from pillow_lic.batch.plan import FOLDER, Plan, Settings, make_plan, recorded, write_record
from pillow_lic.batch.summary import Summary
from pillow_lic.batch.worker import Result, failed
from pillow_lic.options import EncoderOptions, options_from

__all__ = ["Summary", "convert"]


def convert(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    to: str = ".lic",
    options: EncoderOptions | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
    keep_going: bool = False,
    dry_run: bool = False,
    psnr: bool = False,
    on_result: Callable[[Result, int], None] | None = None,
) -> Summary:
    """Convert files and folders into a folder, each folder's tree laid over it; skip what is done and unchanged.

    sources, target  paths or URLs of fsspec (s3://, gs://, zip://, memory://)
    to               extension of the targets: ".lic", or another that Pillow writes to convert .lic files
    options          of the encoder; None for the defaults of this process
    jobs             worker processes (they are spawned: scripts need ``if __name__ == "__main__"``), None for
                     one a core; 1 converts in this process
    scheduler        address of a Dask scheduler whose workers convert instead
    overwrite        convert what is done, too
    keep_going       go on after a failure; failures are in the summary either way
    dry_run          only tell what would be done, in the summary's ``planned``
    psnr             measure each picture's PSNR (.lic files are decoded for it)
    on_result        called after each file with its result and the number of files there are to convert

    Raises ``ValueError`` for settings that make no sense, ``OSError`` for places that cannot be read or written and
    ``ImportError`` where a place or the cluster needs a package of the extras ``remote`` or ``dask``.
    """
    started = time.perf_counter()
    suffix = suffix_of(to, read_back=psnr)
    given = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    places, destination = [locate(s) for s in given], locate(target)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    if (scheduler or jobs != 1) and any("memory" in f.fs.protocol for f in (*places, destination)):
        raise ValueError("memory:// is known to this process only; use jobs=1")
    jobs = min(jobs or engines.cores(), engines.MOST)
    threads = engines.share(jobs)
    settings = Settings(suffix, options or options_from({}), destination.below(FOLDER), psnr, threads)
    with reaching():
        plan = make_plan(places, destination, settings, overwrite=overwrite)
    summary = Summary(skipped=plan.done, failures=[failed(s, destination, error) for s, error in plan.failures])
    if summary.failures and not keep_going:
        plan.tasks.clear()
    if dry_run:
        summary.planned = [(str(task.source), str(task.target)) for task in plan.tasks]
    elif plan.tasks:
        if scheduler is not None:
            settings = replace(settings, job=uuid4().hex)
        with recorded(destination, plan, settings.job), closing(_results(plan, settings, jobs, scheduler)) as results:
            for result in results:
                summary.add(result)
                if on_result:
                    on_result(result, len(plan.tasks))
                if summary.failures and not keep_going:
                    break
    elif plan.moved:
        with suppress(OSError), reaching():  # it costs nothing but a look at the pictures next time
            write_record(destination, plan)
    summary.seconds = time.perf_counter() - started
    return summary


def suffix_of(name: str, *, read_back: bool = False) -> str:
    """An extension with its dot; ``ValueError`` if Pillow writes no format of that name, or does not ``read_back``
    what it writes.
    """
    suffix = "." + name.lower().removeprefix(".")
    form = Image.registered_extensions().get(suffix)
    if form not in Image.SAVE:
        raise ValueError(f"no format that can be written has the extension {suffix!r}")
    if read_back and form not in Image.OPEN:
        raise ValueError(f"Pillow writes {suffix} files but does not read them: there is no PSNR to measure")
    return suffix


def _results(plan: Plan, settings: Settings, jobs: int, scheduler: str | None) -> Generator[Result, None, None]:
    if scheduler is not None:
        return engines.on_cluster(plan.tasks, settings, scheduler)
    if min(jobs, len(plan.tasks)) == 1:
        return engines.in_this_process(plan.tasks, settings)
    return engines.in_processes(plan.tasks, settings, min(jobs, len(plan.tasks)))
