"""Where networks run, and in which precision."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TypeVar

import torch

from pillow_lic import options
from pillow_lic.warning import warn

Result = TypeVar("Result")

WORTH_CUDA = 256 * 256
"""Pixels from which a transfer to the GPU pays."""


@contextmanager
def quiet(device: torch.device, threads: int | None = None) -> Iterator[None]:
    """No gradients, no autocast and at most so many threads, whatever the caller has set; all is put back after.

    Memory that does not suffice is a ``MemoryError``, not torch's ``RuntimeError``.
    """
    with ExitStack() as stack:
        stack.enter_context(on_threads(threads))
        stack.enter_context(torch.inference_mode())
        for kind in {"cpu", device.type}:  # some of the work for a GPU is the CPU's
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        except RuntimeError as error:
            if is_no_memory(error):
                raise MemoryError(str(error)) from error
            raise


@contextmanager
def on_threads(count: int | None = None) -> Iterator[None]:
    """At most so many threads; just one in a forked child, which would wait for ever for OpenMP's of its parent."""
    if _forked:
        count = 1
    if count is None:
        yield
        return
    with keeping_threads(count):
        torch.set_num_threads(count)
        yield


@contextmanager
def keeping_threads(count: int) -> Iterator[int]:
    """How many threads torch has, and has again afterwards; meanwhile ``count`` is set, in this thread or in others.

    What one thread sets is what threads that start later begin with: several of these at a time must not take each
    other's count for the one to put back.
    """
    global _first
    with _counting:
        before = torch.get_num_threads()
        if not _counts:
            _first = before
        elif before in _counts and not getattr(_inside, "depth", 0):
            before = _first
        _counts.append(count)
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield before
    finally:
        _inside.depth = max(0, _inside.depth - 1)
        with _counting:
            if count in _counts:  # a child that was forked meanwhile has begun anew
                _counts.remove(count)
            torch.set_num_threads(before)


def _note_fork() -> None:
    global _forked, _counting
    _forked, _counting = True, threading.Lock()
    _counts.clear()
    _inside.depth = 0


_forked = False
_counting = threading.Lock()
_counts: list[int] = []
_inside = threading.local()
_first = 1
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def choose_device(name: str | None, pixels: int) -> torch.device:
    """The device to work on; ``ValueError`` if it does not exist.

    Where a GPU is missing that only a default asks for (``set_defaults``, PILLOW_LIC_DEVICE), it is the CPU, with
    one warning: a default may be meant for several machines.
    """
    by_call = name is not None and name != options.defaults.device
    name = name or options.defaults.device or os.environ.get("PILLOW_LIC_DEVICE") or None
    if name is None:
        # A forked child cannot use the CUDA of its parent, and nobody asked for it by name.
        usable = pixels >= WORTH_CUDA and torch.cuda.is_available() and not torch.cuda._is_in_bad_fork()
        return _numbered(torch.device("cuda" if usable else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {name!r}") from None
    if device.type == "cuda" and (torch.cuda._is_in_bad_fork() or (device.index or 0) >= torch.cuda.device_count()):
        if by_call:
            raise ValueError(_missing(name))
        tell_once(f"{_missing(name)}; working on the CPU")
        return torch.device("cpu")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {name!r}")
    return _numbered(device)


def _numbered(device: torch.device) -> torch.device:
    """A device by its number: "cuda" is another one in threads, which do not know what their caller has set."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _missing(name: str) -> str:
    """What to say of a GPU that is not there."""
    if torch.version.cuda is None:
        advice = f"torch {torch.__version__} is built without CUDA, install a build with it (https://pytorch.org)"
    elif torch.cuda._is_in_bad_fork():
        advice = "a forked process cannot use the GPU of its parent; spawn workers instead"
    else:
        advice = f"torch sees {torch.cuda.device_count()} GPUs, check the driver with nvidia-smi"
    return f"device {name!r} does not exist here: {advice}"


def finish(key: Iterable[object]) -> None:
    """Wait for what the GPUs among some things are doing: threads with streams of their own must find it done."""
    for device in key:
        if isinstance(device, torch.device) and device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()


def or_on_cpu(device: torch.device, work: Callable[[torch.device], Result]) -> Result:
    """What some work on a device gives; on the CPU, with one warning, if the GPU's memory does not suffice."""
    try:
        return work(device)
    except RuntimeError as error:
        if device.type == "cpu" or not is_full(error):
            raise
        reason = str(error).partition(".")[0]
    # Outside the handler, whose traceback would keep the GPU's tensors alive.
    torch.cuda.empty_cache()
    tell_once(f"{device} is out of memory ({reason}); working on the CPU. Smaller tiles (tile=) need less")
    return work(torch.device("cpu"))


def is_no_memory(error: BaseException) -> bool:
    """Whether an error is torch's word for what everybody else calls a ``MemoryError``."""
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_of_a_gpu(error: BaseException) -> bool:
    """Whether an error is one of CUDA, or of its libraries."""
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in ("CUDA", "CUBLAS", "CUDNN", "cuDNN"))
    return told or isinstance(error, torch.cuda.OutOfMemoryError)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory does not suffice; its libraries have words of their own for that."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return is_of_a_gpu(error) and any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))


@cache
def tell_once(message: str) -> None:
    """Warn, once in a process."""
    warn(message)


@cache
def block_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32.

    PILLOW_LIC_PRECISION=float32 or bfloat16 decides otherwise; ``ValueError`` for anything else.
    """
    if wanted := os.environ.get("PILLOW_LIC_PRECISION"):
        if wanted not in ("float32", "bfloat16"):
            raise ValueError(f"PILLOW_LIC_PRECISION must be 'float32' or 'bfloat16', not {wanted!r}")
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = known.get("avx512_bf16") or known.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32
