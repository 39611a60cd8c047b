"""Many pictures at once, and pictures as tensors: for services and training pipelines."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from io import BytesIO
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from pillow_lic import codec, inputs, plugin
from pillow_lic.container import Frame
from pillow_lic.devices import WORTH_CUDA, choose_device
from pillow_lic.header import Header
from pillow_lic.options import options_from
from pillow_lic.pixels import Pixels

AHEAD = 32
"""Pictures that may be on their way from a GPU to the host, in memory that the system cannot move."""

Source = bytes | str | os.PathLike[str] | IO[bytes]


def encode_batch(images: Iterable[Any], *, workers: int | None = None, **options: Any) -> list[bytes]:
    """The .lic files of images, as ``save`` makes them with the same options.

    images   Pillow images, uint8 arrays (H, W) or (H, W, 2 to 4), or uint8 tensors (C, H, W); only Pillow images
             bring metadata (ICC profile and comment, as with ``save``)
    workers  threads for range coding; None: as ``set_defaults`` says of threads, or as many as torch is set to
    options  those of :class:`pillow_lic.EncoderOptions`

    On CUDA, pictures of one size (and tiles) go through the networks in batches; sums of floating-point numbers
    then differ in their last bits, so that files may differ from those of ``save`` in a few symbols.  On the
    CPU they are the same files.  Raises what ``save`` does.
    """
    opts = options_from(options)
    return list(codec.encode_many((_pixels_of(image) for image in images), opts, workers))


def decode_batch(
    files: Iterable[Source], *, device: str | None = None, workers: int | None = None
) -> list[Image.Image]:
    """The first frames of .lic files (bytes, paths or open files) as images, as ``Image.open`` and ``load`` give them.

    device   "cpu", "cuda", "cuda:1", or None: CUDA where there is one
    workers  threads for range coding; None: as ``set_defaults`` says of threads, or as many as torch is set to

    On CUDA, pictures of one size (and tiles) go through the networks in batches, and pixels may differ by 1 from
    those of single pictures; on the CPU they are the same.  Raises what ``Image.open`` and ``load`` do.
    """
    infos: list[dict[Any, Any]] = []
    images: list[Image.Image] = []
    coming: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def finish(most: int) -> None:
        """Make images until no more than ``most`` are on their way from a device."""
        while len(coming) > most:
            pixels, copied = coming.popleft()
            if copied is not None:
                copied.synchronize()
            image = Image.fromarray(_interleaved(pixels, always_copy=copied is not None))
            image.readonly, image.info = 0, infos[len(images)]  # nobody else has the array
            images.append(image)

    for pixels in codec.decode_many(_frames(files, infos), device, workers):
        coming.append(_to_host(pixels))
        finish(AHEAD if pixels.is_cuda else 0)
    finish(0)
    return images


def decode_tensor(data: Source, *, device: str | None = None) -> Tensor:
    """The first frame of a .lic file as a uint8 tensor (C, H, W) on a device, C 1 to 4, without a Pillow image.

    On CUDA the pixels never leave the device.  ``device=None`` is the CPU: workers of a data loader have no
    business on the GPU.  Raises what ``Image.open`` and ``load`` do.
    """
    (frame,) = _frames([data], [])
    if choose_device(device or "cpu", WORTH_CUDA).type == "cpu":
        array = codec.decode(*frame, device or "cpu")
        return torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy())
    found: Tensor = next(codec.decode_many([frame], device))
    return found


def _frames(files: Iterable[Source], infos: list[dict[Any, Any]]) -> Iterator[tuple[Header, Frame]]:
    """Headers and first frames, checked as Pillow checks them; appends what ``im.info`` would say."""
    for file in files:
        with ExitStack() as stack:
            image = plugin.open(BytesIO(file) if isinstance(file, (bytes, bytearray, memoryview)) else file)
            stack.enter_context(image)
            reader = image._reader
            assert reader is not None
            reader.lenient = ImageFile.LOAD_TRUNCATED_IMAGES
            infos.append(image.info)
            yield reader.header, reader.frame(0)


def _pixels_of(image: Any) -> tuple[Pixels, dict[str, bytes]]:
    if isinstance(image, Image.Image):
        shown = inputs.in_supported_mode(image)
        return np.asarray(shown), inputs.metadata_from(inputs.inherited_from(image, shown.mode))
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.dim() != 3:
            raise TypeError(f"tensors of pictures are uint8 and (C, H, W), not {image.dtype} and {tuple(image.shape)}")
        image = _interleaved(image.cpu())
    return np.asarray(image), {}


def _interleaved(pixels: Tensor, *, always_copy: bool = False) -> Pixels:
    """(C, H, W) as (H, W) or (H, W, C); by NumPy, which a forked child does not wait for."""
    array = pixels.numpy().transpose(1, 2, 0)
    array = array[:, :, 0] if len(pixels) == 1 else array
    return array.copy("C") if always_copy else np.ascontiguousarray(array)


def _to_host(pixels: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy in pinned memory, complete after the event; a tensor on the host is returned as it is."""
    if not pixels.is_cuda:
        return pixels, None
    host = torch.empty(pixels.shape, dtype=pixels.dtype, device="cpu", pin_memory=True)
    host.copy_(pixels, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(pixels.device))
    return host, copied
