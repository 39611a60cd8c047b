"""Kills conversions at random moments, takes them up again, and compares with an undisturbed one.

python tests/kill_batch.py --rounds 20 interrupt main worker cluster
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from PIL import Image

from pillow_lic import EncoderOptions
from pillow_lic.batch import Summary, convert

IMAGES = Path(__file__).parent / "images"
# Sums differ in their last bits with the number of threads, and so may files.
ONE_THREAD = EncoderOptions(threads=1)


def make_photos(folder: Path, count: int) -> None:
    """Small pictures in two folders."""
    with Image.open(IMAGES / "astronaut.png") as image:
        for n in range(count):
            path = folder / ("even" if n % 2 else "odd") / f"{n:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.crop((n % 60, n % 50, n % 60 + 192, n % 50 + 140)).save(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def identities(folder: Path) -> dict[Path, tuple[int, int]]:
    """Of every target: what would change if it were written again."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*.lic")}


def start(photos: Path, out: Path, *, new_session: bool = False) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pillow_lic", "convert", photos, out, "--jobs", "2", "--threads", "1"]
    heard = subprocess.PIPE if new_session else subprocess.DEVNULL
    return subprocess.Popen(
        [str(a) for a in argv], stdout=subprocess.DEVNULL, stderr=heard, start_new_session=new_session,
        env=os.environ | {"TQDM_DISABLE": "1"}, preexec_fn=_hear_interrupts,
    )  # fmt: skip


def _hear_interrupts() -> None:
    """As in a terminal: what a shell starts in the background does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_targets(out: Path, count: int) -> None:
    deadline = time.monotonic() + 240
    while len(identities(out)) < count:
        assert time.monotonic() < deadline, "the conversion does not get on"
        time.sleep(0.01)


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes below one that load pillow-lic, without multiprocessing's own helper."""
    found = []
    for process in psutil.Process(pid).children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_main(photos: Path, out: Path, expected: dict[str, bytes], moment: float) -> int:
    """Kill the command once so many targets are there (0: before any), start it again; returns how many were."""
    process = start(photos, out)
    wait_for_targets(out, int(moment))
    time.sleep(moment % 1 * 0.1)
    workers = workers_of(process.pid)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1], "workers outlive the command"
    done = identities(out)
    assert all(path.read_bytes() == expected[path.relative_to(out).as_posix()] for path in done)
    convert([photos], out, jobs=1, options=ONE_THREAD)
    assert contents(out) == expected
    assert {path: identities(out)[path] for path in done} == done, "something was converted twice"
    return len(done)


def interrupt(photos: Path, out: Path, expected: dict[str, bytes], moment: float) -> int:
    """Ctrl-C, which reaches the command and its workers: it says so, and the next one goes on."""
    process = start(photos, out, new_session=True)
    wait_for_targets(out, max(1, int(moment)))
    time.sleep(moment % 1 * 0.1)
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 1, (process.returncode, said)
    assert said.splitlines()[-1] == "lic convert: interrupted"
    assert "Traceback" not in said
    assert not psutil.wait_procs(workers, timeout=20)[1], "workers outlive the command"
    done = identities(out)
    convert([photos], out, jobs=1, options=ONE_THREAD)
    assert contents(out) == expected
    assert {path: identities(out)[path] for path in done} == done, "something was converted twice"
    return len(done)


def kill_worker(photos: Path, out: Path, expected: dict[str, bytes], moment: float) -> int:
    """Kill a worker process; the command itself finishes the work."""
    process = start(photos, out)
    wait_for_targets(out, max(1, int(moment)))
    time.sleep(moment % 1 * 0.1)
    done = identities(out)
    for worker in workers_of(process.pid)[:1]:
        worker.kill()
    assert process.wait(300) == 0
    assert contents(out) == expected
    assert {path: identities(out)[path] for path in done} == done, "something was converted twice"
    return len(done)


def kill_cluster_worker(photos: Path, out: Path, expected: dict[str, bytes], moment: float) -> int:
    """Kill a worker process of a Dask cluster; the others finish the work."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        summaries: list[Summary] = []
        address = cluster.scheduler_address
        job = threading.Thread(
            target=lambda: summaries.append(convert([photos], out, scheduler=address, options=ONE_THREAD)), daemon=True
        )
        job.start()
        wait_for_targets(out, max(1, int(moment)))
        time.sleep(moment % 1 * 0.1)
        done = identities(out)
        psutil.Process(next(iter(cluster.workers.values())).pid).send_signal(signal.SIGKILL)
        job.join(300)
        if job.is_alive():
            faulthandler.dump_traceback(all_threads=True)
            raise AssertionError("the conversion does not end")
    (summary,) = summaries
    assert (summary.failures, summary.converted) == ([], len(expected) - 1)
    assert contents(out) == expected
    assert {path: identities(out)[path] for path in done} == done, "something was converted twice"
    return len(done)


KINDS = {"interrupt": interrupt, "main": kill_main, "worker": kill_worker, "cluster": kill_cluster_worker}


def run(kind: str, rounds: int, count: int, seed: int, folder: Path) -> list[int]:
    """Some kills, evenly spread over the work; returns how many files were done at each."""
    chance = random.Random(seed)
    photos, undisturbed = folder / "photos", folder / "undisturbed"
    if not undisturbed.exists():
        make_photos(photos, count)
        convert([photos], undisturbed, jobs=1, options=ONE_THREAD)
    expected = contents(undisturbed)
    moments = [(n + chance.random()) * (count - 1) / rounds for n in range(rounds)]
    return [KINDS[kind](photos, folder / f"{kind}-{n}", expected, moment) for n, moment in enumerate(moments)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for kind in args.kinds:
            started = time.monotonic()
            found = run(kind, args.rounds, args.files, args.seed, Path(name))
            seconds = time.monotonic() - started
            print(
                f"{kind}: {args.rounds} kills after {found} of {args.files} files, all as undisturbed ({seconds:.0f} s)"
            )


if __name__ == "__main__":
    main()
