"""Who converts: this process, worker processes of this machine, or a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from pillow_lic import options
from pillow_lic.batch.plan import Settings, Task
from pillow_lic.batch.worker import Result, begin, convert_all, failed
from pillow_lic.extras import need

if TYPE_CHECKING:
    from distributed import Client

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much processor time a container has: microseconds of a period, and the period."""

STARTS = 3
"""How often in a row worker processes may die before they have begun anything."""

MOST = 61 if sys.platform == "win32" else 1024
"""Worker processes of one machine; Windows cannot wait for more."""

PARTITION = 8
"""Files that a worker of a cluster converts for each task of its scheduler."""


def cores() -> int:
    """Cores that this process may use."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = map(int, QUOTA.read_text().split())
        found = min(found, -(-quota // period))
    return max(1, found)


def share(jobs: int) -> int | None:
    """Threads of each of so many processes; None for one process, which keeps what torch is set to.

    It does not depend on how few files are left: as sums come out differently with another number of threads,
    a job that is taken up again would make other files.
    """
    return max(1, cores() // jobs) if jobs > 1 else None


def in_this_process(tasks: Sequence[Task], settings: Settings) -> Generator[Result, None, None]:
    """One after the other, here."""
    import torch

    before = torch.get_num_threads()
    try:
        for task in tasks:
            yield from convert_all([task], settings)
    finally:
        torch.set_num_threads(before)


def in_processes(tasks: Sequence[Task], settings: Settings, jobs: int) -> Generator[Result, None, None]:
    """In so many processes of this machine.

    A process that dies (out of memory, killed) takes no other file with it: all that were in work are tried
    again, one at a time, and the one that kills its process once more has failed.  Raises ``OSError`` if processes die
    before they begin.
    """
    waiting, suspects = deque(tasks), deque[Task]()
    strikes = 0
    while waiting or suspects:
        alone = bool(suspects)
        if alone:
            left, begun = yield from _pool(suspects, replace(settings, again=True), 1, ahead=1)
        else:
            left, begun = yield from _pool(waiting, settings, jobs, ahead=2)
        strikes = 0 if begun else strikes + 1
        if strikes == STARTS:
            raise OSError(
                "worker processes die before they begin: is there enough memory for torch? If a script of yours called "
                'this, its calls belong under `if __name__ == "__main__":`, since each worker imports it'
            )
        if alone and begun:
            for task in left:
                yield failed(task.source, task.target, "the process converting it died; is there enough memory?")
        else:
            suspects.extendleft(left)


def _pool(
    waiting: deque[Task], settings: Settings, jobs: int, ahead: int
) -> Generator[Result, None, tuple[list[Task], bool]]:
    """Convert what is waiting, ``ahead`` files a process handed out.

    Those that were out when a process died are returned, and whether any process had begun to work.
    """
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    running: dict[Future[list[Result]], Task] = {}
    start = lifeline, settings.threads or 1, options.defaults.device
    executor = ProcessPoolExecutor(jobs, context, _start, start)
    begun: Future[None] | None = None
    try:
        while waiting or running:
            broken = False
            try:
                with _uninterrupted():
                    begun = begun or executor.submit(begin)
                    while waiting and len(running) < ahead * jobs:
                        running[executor.submit(convert_all, [waiting[0]], settings)] = waiting[0]
                        waiting.popleft()
            except BrokenProcessPool:
                broken = True
            wait(running, return_when=FIRST_COMPLETED)
            for future in [f for f in running if f.done()]:
                if isinstance(future.exception(), BrokenProcessPool):
                    broken = True
                else:
                    del running[future]
                    yield from future.result()
            if broken:
                wait(running)
                return list(running.values()), begun is not None and begun.exception() is None
        executor.shutdown()
        return [], True
    finally:
        # Ends the processes at once if there are any left; what they had in work is as if never begun.
        held.close()
        executor.shutdown(cancel_futures=True)
        lifeline.close()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C from processes that start meanwhile, which would tell of it by tracebacks; it comes here after."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(lifeline: Connection, threads: int, device: str | None) -> None:
    """Prepare a worker process, which ends when whoever holds the other end of the lifeline does.

    ``device`` is a default there, too: one that is missing leaves the work to the CPU.
    """

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=watch, daemon=True).start()
    options.set_defaults(device=device)


def on_cluster(tasks: Sequence[Task], settings: Settings, scheduler: str) -> Generator[Result, None, None]:
    """On the workers of a Dask cluster, partition by partition.

    Every thread of a worker converts one file at a time on one core.  What a worker had in work when it died
    goes to another, which converts what is not done yet; if it kills that one too, its files are tried one at a time.
    """
    need("dask", "distributed")
    from distributed import Client, KilledWorker, as_completed

    settings = replace(settings, threads=1, again=True)
    suspects: deque[Task] = deque()
    alone = False
    waiting = deque(tasks[n : n + PARTITION] for n in range(0, len(tasks), PARTITION))
    with Client(scheduler) as client:
        pending, parts = as_completed(), {}

        def submit(count: int) -> None:
            for _ in range(min(count, len(waiting))):
                part = waiting.popleft()
                future = client.submit(convert_all, part, settings, pure=False)
                parts[future.key] = part
                pending.add(future)

        submit(_wanted(client))
        for future in pending:
            if future.cancelled():
                raise OSError(f"the Dask scheduler {scheduler} is gone")
            part, error = parts.pop(future.key), future.exception()
            if error is None:
                yield from future.result()
            elif alone or not isinstance(error, KilledWorker):
                for task in part:
                    yield failed(task.source, task.target, error)
            else:
                suspects += part  # whatever else the worker had in hand is not to blame
            submit(_wanted(client) - len(parts))  # workers come and go
            if not parts and suspects:
                alone = True
                waiting.append([suspects.popleft()])
                submit(1)


def _wanted(client: Client) -> int:
    """How many partitions a cluster has in hand: one in work and one waiting for each thread."""
    threads: int = sum(client.nthreads().values())
    return 2 * max(1, threads)
