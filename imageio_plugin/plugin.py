"""imageio's contract: a PluginV3 over the codec, as imageio's own plugins behave."""

from __future__ import annotations

import atexit
import builtins
import io
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import EllipsisType, TracebackType
from typing import Any

import numpy as np
from imageio.core.request import URI_BYTES, InitializationError, IOMode, Request
from imageio.core.v3_plugin_api import ImageProperties, PluginV3
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

from pillow_lic import container, options
from pillow_lic.header import Animation
from pillow_lic.inputs import DAMAGED, check_pixels, mask_from, metadata_from, shown_metadata, times_of, whole_times
from pillow_lic.plugin import METADATA, info_of
from pillow_lic.warning import warn

Pixels = NDArray[np.uint8]

WRITE_EXTRAS = METADATA | {"duration", "loop", "progress", "roi"}
READ_EXTRAS = frozenset({"model_id", "model_name", "shape", *ExifTags.TAGS.values()})
"""What :meth:`LicPlugin.metadata` tells besides, and whoever writes may pass on."""


class NoSuchFrameError(IndexError, ValueError):
    """A frame that a file does not have: a ``ValueError`` by imageio's v3 API, the other for readers of v2's."""


class LicPlugin(PluginV3):
    """Reads and writes .lic files.

    Raises ``InitializationError`` for another kind of file, so that imageio tries other plugins,
    and ``OSError`` for a damaged one.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._reader: container.Reader | None = None
        self._cached: tuple[int, Pixels] | None = None
        self._frames: builtins.list[Pixels] = []
        self._times: builtins.list[float] = []
        self._options: dict[str, Any] = {}
        self._flushed = self._closed = False
        self._at_exit = partial(_close, weakref.ref(self))
        if request.mode.io_mode != IOMode.read:
            wanted = request.extension or request.format_hint
            if wanted not in (None, ".lic"):
                raise InitializationError(f"the LIC plugin cannot write {wanted} files")
            return
        try:
            file = request.get_file()
            try:
                file.seek(0)  # as Image.open does with what was just written
            except (AttributeError, io.UnsupportedOperation):
                file = io.BytesIO(file.read())
            self._reader = container.Reader(file, lenient=ImageFile.LOAD_TRUNCATED_IMAGES)
            Image._decompression_bomb_check((self._reader.header.width, self._reader.header.height))
            self._metadata = self._reader.metadata()
        except SyntaxError:
            raise InitializationError(f"{request.raw_uri!r:.80} is not a LIC file") from None
        except (OSError, Image.DecompressionBombError):
            request.finish()
            raise

    def read(
        self,
        *,
        index: int | EllipsisType | None = 0,
        mode: str | None = None,
        rotate: bool = False,
        writeable_output: bool = True,
        pilmode: str | None = None,
        exifrotate: bool | None = None,
    ) -> Pixels:
        """A frame as (H, W) or (H, W, 2 to 4) uint8; all frames stacked for ``index=...``.

        mode    a Pillow mode to convert to, e.g. "L"; ``pilmode`` is its old name
        rotate  apply the orientation that the EXIF data tell; ``exifrotate`` is its old name

        What comes back is writeable, whatever ``writeable_output`` says.
        """
        mode, rotate = _renamed("pilmode", pilmode, "mode", mode), _renamed("exifrotate", exifrotate, "rotate", rotate)
        if index is Ellipsis:
            return np.stack(builtins.list(self.iter(mode=mode, rotate=rotate)))
        self._check_index(index)
        image = Image.fromarray(self._frame(int(index or 0)))
        if mode is not None:
            image = image.convert(mode)
        if rotate:
            orientation = 1
            with suppress(*DAMAGED):
                orientation = self._exif().get(ExifTags.Base.Orientation, 1)
            image.getexif()[ExifTags.Base.Orientation] = orientation
            image = ImageOps.exif_transpose(image)
        return np.array(image)

    def iter(self, *, mode: str | None = None, rotate: bool = False, writeable_output: bool = True) -> Iterator[Pixels]:
        """Every frame in turn."""
        for index in range(self._opened().header.frames):
            yield self.read(index=index, mode=mode, rotate=rotate)

    def write(
        self, ndimage: ArrayLike | list[ArrayLike], *, is_batch: bool | None = None, **kwargs: Any
    ) -> bytes | None:
        """Add a picture, (H, W) or (H, W, 1 to 4) uint8, or a batch of frames; the file is written when it is closed.

        ``is_batch=None``: lists are batches, and arrays that are no picture by their shape.  Takes the options of
        ``Image.save(..., format="LIC")``, ``duration`` (of these frames) and ``loop`` too; the last call's hold for
        the file.  Returns the file, written at once, if the target is ``"<bytes>"``.
        """
        if self._reader is not None or self.request.mode.io_mode != IOMode.write:
            raise OSError("this LIC file was opened for reading")
        if self._closed:
            raise OSError("this LIC file was closed")
        batched = _is_batch(ndimage) if is_batch is None else is_batch or isinstance(ndimage, builtins.list)
        frames = builtins.list(map(_picture, ndimage if batched else [ndimage]))  # type: ignore[arg-type]
        if not frames:
            raise ValueError("cannot write an empty batch as LIC")
        first = (self._frames or frames)[0]
        if any(check_pixels(f) != check_pixels(first) or f.shape != first.shape for f in frames):
            raise ValueError("all frames of a LIC file must have the same size and mode")
        if (rate := kwargs.pop("fps", None)) is not None:
            warn(f"fps is deprecated; use duration={1000 / rate:g} (ms)", DeprecationWarning)
            kwargs["duration"] = 1000 / rate
        if kwargs.get("mode") == check_pixels(first):  # as metadata() tells it
            del kwargs["mode"]
        options.options_from(kwargs, also_known=WRITE_EXTRAS | READ_EXTRAS)  # a clear error now
        metadata_from(kwargs)
        duration = kwargs.get("duration")
        times = self._times + times_of(0 if duration is None else duration, len(frames))
        given = self._options | kwargs
        _coding(given)
        _animation(given, times)
        if not self._frames:  # for who never closes it: when Python ends nothing can be imported any more
            import pillow_lic.codec  # noqa: F401

            atexit.register(self._at_exit)
        self._frames += [frame.copy() for frame in frames]  # whose arrays may be used again before the file is closed
        self._times, self._options = times, given
        return self._flush() if self.request._uri_type == URI_BYTES else None

    def _flush(self) -> bytes | None:
        """Write the frames that were collected, if there are any, in place of what was written before."""
        frames, given = self._frames, self._options
        if not frames:
            return None

        from pillow_lic import codec

        animation = _animation(given, self._times) if len(frames) > 1 else None
        roi = given.get("roi")
        if roi is not None:
            roi = mask_from(roi, Image.fromarray(frames[0]))
        mask = None if roi is None else np.asarray(roi)
        with codec.reporting_to(given.get("progress")):
            data = codec.encode(frames, _coding(given), metadata_from(given), animation, mask)
        file = self.request.get_file()
        if self._flushed:
            file.seek(0)
            file.truncate()
        file.write(data)
        self._flushed = True
        return data

    def close(self) -> None:
        """Write what was collected, and close the file."""
        atexit.unregister(self._at_exit)
        self._closed = True
        try:
            if not self._flushed:
                self._flush()
        finally:
            self._frames = []
            super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._frames = []  # half of the frames are no file
        super().__exit__(kind, error, traceback)

    def properties(self, index: int | EllipsisType | None = 0) -> ImageProperties:
        """Shape and type, without decoding."""
        header = self._opened().header
        shape: tuple[int, ...] = (header.height, header.width)
        shape += {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[header.mode]
        if index is Ellipsis:
            return ImageProperties((header.frames, *shape), np.dtype(np.uint8), header.frames, is_batch=True)
        self._check_index(index)
        return ImageProperties(shape, np.dtype(np.uint8), is_batch=False)

    def metadata(self, index: int | EllipsisType | None = 0, exclude_applied: bool = True) -> dict[str, Any]:
        """Coding, mode, shape, ICC profile and XMP where the file has them, EXIF as bytes and tag by tag; without the
        orientation unless ``exclude_applied`` is false.
        """
        if index is not Ellipsis:
            self._check_index(index)
        header = self._opened().header
        tags: dict[str, Any] = {}
        with suppress(*DAMAGED):
            tags = {ExifTags.TAGS[tag]: value for tag, value in self._exif().items() if tag in ExifTags.TAGS}
        if exclude_applied:
            tags.pop("Orientation", None)
        return {
            **info_of(header),
            **shown_metadata(self._metadata),
            "mode": header.mode,
            "shape": (header.width, header.height),
            **self._timing(index),
            **tags,
        }

    def _timing(self, index: int | EllipsisType | None) -> dict[str, Any]:
        animation = self._opened().animation
        if animation is None:
            return {}
        shown = animation.durations if index is Ellipsis else animation.durations[int(index or 0)]
        return {"loop": animation.loop, "duration": shown}

    def _opened(self) -> container.Reader:
        if self._reader is None:
            raise OSError("this LIC file was opened for writing")
        return self._reader

    def _check_index(self, index: int | EllipsisType | None) -> None:
        frames = self._opened().header.frames
        if not isinstance(index, (int, np.integer, type(None))) or not 0 <= (index or 0) < frames:
            raise NoSuchFrameError(f"the LIC file has {frames} frame(s); there is no index {index!r}")

    def _frame(self, index: int) -> Pixels:
        from pillow_lic import codec

        if self._cached is None or self._cached[0] != index:
            reader = self._opened()
            reader.lenient = ImageFile.LOAD_TRUNCATED_IMAGES
            self._cached = (index, codec.decode(reader.header, reader.frame(index)))
        return self._cached[1]

    def _exif(self) -> Image.Exif:
        """The EXIF tags as Pillow finds them: an orientation that stands in the XMP data alone, too."""
        image = Image.new("L", (1, 1))
        image.info.update(shown_metadata(self._metadata))
        return image.getexif()


def _animation(given: dict[str, Any], times: builtins.list[float]) -> Animation:
    """How to show frames; ``TypeError`` or ``ValueError`` for a loop that no file has."""
    return Animation(given.get("loop") or 0, whole_times(times))


def _coding(given: dict[str, Any]) -> options.EncoderOptions:
    """The options of the coding among all, those of several calls together."""
    return options.options_from({k: v for k, v in given.items() if k in options.OPTION_NAMES})


def _close(writer: weakref.ref[LicPlugin]) -> None:
    if (found := writer()) is not None:
        found.close()


def _renamed(old: str, value: Any, new: str, current: Any) -> Any:
    """An argument's value under its old name, with a warning, or else what it has under its new one."""
    if value is None:
        return current
    warn(f"{old} is deprecated; use {new}", DeprecationWarning)
    return value


def _is_batch(ndimage: ArrayLike | list[ArrayLike]) -> bool:
    """Whether what is to be written has several pictures: imageio's rule, but that one channel is a picture."""
    if isinstance(ndimage, list):
        return True
    shape = np.shape(ndimage)
    return len(shape) > 3 or (len(shape) == 3 and not 1 <= shape[-1] <= 4)


def _picture(array: ArrayLike) -> Pixels:
    """One picture without a last axis of one channel; truth values are black and white, as for imageio's plugins."""
    picture = np.asarray(array)
    if picture.dtype == np.bool_:
        picture = picture * np.uint8(255)
    return picture[:, :, 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
