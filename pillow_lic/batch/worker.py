"""Conversions, wherever they run: in this process, in worker processes, on a cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from pillow_lic.batch import metadata
from pillow_lic.batch.files import File, read, write
from pillow_lic.batch.plan import Settings, Task, is_done
from pillow_lic.inputs import in_supported_mode
from pillow_lic.plugin import EXTENSION, LicImageFile


@dataclass(frozen=True)
class Result:
    """How a conversion went: bytes before and after, pixels, PSNR in dB if asked for, or the error."""

    source: str
    target: str
    before: int = 0
    after: int = 0
    pixels: int = 0
    psnr: float | None = None
    error: str | None = None


def begin() -> None:
    """Load what conversions need: a process that cannot do so dies of no file."""
    import torch  # noqa: F401


def convert(task: Task, settings: Settings) -> Result:
    """Read, convert and write one file; raises what Pillow raises."""
    data = read(task.source)
    try:
        coded, pixels, psnr = transform(data, settings)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"cannot identify image file {str(task.source)!r}") from None
    settings.check_job()
    write(task.target, coded, settings.scratch)
    return Result(str(task.source), str(task.target), len(data), len(coded), pixels, psnr)


def convert_all(tasks: Sequence[Task], settings: Settings) -> list[Result]:
    """Convert some files; what fails is told in its result."""
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    results = []
    for task in tasks:
        try:
            done = settings.again and is_done(task)
            results.append(_told(task) if done else convert(task, settings))
        except Exception as error:
            results.append(failed(task.source, task.target, error))
    return results


def failed(source: File, target: File, error: BaseException | str) -> Result:
    """The result of a conversion that failed."""
    told = str(error)
    if not isinstance(error, (str, OSError, ValueError)) or not told:
        told = f"{type(error).__name__}: {told}".removesuffix(": ")
    return Result(str(source), str(target), error=told)


def transform(data: bytes, settings: Settings) -> tuple[bytes, int, float | None]:
    """A picture's file in another format, its number of pixels (of all frames), and the PSNR if asked for.

    EXIF, ICC profile, XMP, comment and resolution go along, and frames where the format has them.
    """
    extension = settings.suffix
    form = Image.registered_extensions()[extension]
    options: dict[str, Any] = asdict(settings.options) if extension == EXTENSION else {}
    out = BytesIO()
    with _opened(data, settings) as opened:
        opened.load()  # some formats keep their metadata behind the pixels
        image: Image.Image = opened
        options |= metadata.options_for(image, form)
        frames = 1
        if form in Image.SAVE_ALL and metadata.is_film(image):
            options |= metadata.timing_for(image, form)
            frames = getattr(image, "n_frames", 1)
        image.save(out, form, **options)
        coded = out.getvalue()
        return coded, image.width * image.height * frames, _psnr(image, coded, settings) if settings.psnr else None


def _opened(data: bytes, settings: Settings) -> Image.Image:
    """An image; a .lic file is decoded where and by as many threads as the job says."""
    image = Image.open(BytesIO(data))
    if isinstance(image, LicImageFile):
        image.device, image.threads = settings.options.device, settings.options.threads
    return image


def _psnr(image: Image.Image, coded: bytes, settings: Settings) -> float | None:
    """PSNR in dB of the colours of the first frame; None where nothing was lost."""
    import numpy as np

    from pillow_lic.pixels import psnr

    if image.tell() and metadata.is_film(image):
        image.seek(0)
    with _opened(coded, settings) as back:
        both = [np.asarray(_visible(i)) for i in (image, back)]
    found = psnr(both[0], both[1])
    return found if math.isfinite(found) else None


def _visible(image: Image.Image) -> Image.Image:
    """The colours that somebody sees, in mode RGB: black where the image is transparent."""
    image = in_supported_mode(image)
    if image.mode.endswith("A"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def _told(task: Task) -> Result:
    """The result of a conversion that another worker did before it died."""
    coded = read(task.target)
    with Image.open(BytesIO(coded)) as image:
        pixels = image.width * image.height * getattr(image, "n_frames", 1)
    size = task.source.fs.info(task.source.path)["size"]
    return Result(str(task.source), str(task.target), size, len(coded), pixels)
