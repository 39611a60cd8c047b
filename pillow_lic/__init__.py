"""A learned image codec for Pillow and imageio.

Importing this package registers the format, so that ``im.save("x.lic")``, ``Image.open("x.lic")``
and ``imageio.imread("x.lic")`` work.  Torch is imported when the first picture is coded.

``im.save`` takes the options of :class:`EncoderOptions`, and

    exif       bytes or an ``Image.Exif``; b"" or None for none
    icc_profile
               bytes; the image's own unless it is given, None drops it
    xmp        bytes or text
    comment    bytes or text; the image's own unless it is given
    dpi        two numbers
    roi        a mask of the image's size, or a function of the image that gives one: bits go where it is bright
    save_all, append_images, duration, loop
               several frames, as with Pillow's own formats
    progress   a function that is called with the work done and all there is
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pillow_lic import plugin as _plugin
from pillow_lic.plugin import open

if TYPE_CHECKING:
    from pillow_lic.codec import transcode
    from pillow_lic.options import EncoderOptions, set_defaults
    from pillow_lic.throughput import decode_batch, decode_tensor, encode_batch

__all__ = [
    "EncoderOptions",
    "__version__",
    "decode_batch",
    "decode_tensor",
    "encode_batch",
    "open",
    "register_lic_opener",
    "set_defaults",
    "transcode",
]

__version__ = "0.1.0"


def register_lic_opener(**defaults: Any) -> None:
    """Register the format with Pillow and imageio, and set defaults for the encoder's options.

    Importing the package does it already; a call says so to linters and in spawned workers, may
    be repeated, and takes the options of :class:`EncoderOptions` as defaults for this process.
    """
    from imageio_plugin.registration import register_when_imported

    _plugin.register()
    register_when_imported()
    if defaults:
        from pillow_lic.options import set_defaults

        set_defaults(**defaults)


def __dir__() -> list[str]:
    """All names, those included that are imported when they are asked for: ``help(pillow_lic)`` shows them."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """What takes long to import, when it is asked for."""
    if name in ("EncoderOptions", "set_defaults"):
        from pillow_lic import options

        return getattr(options, name)
    if name == "transcode":
        from pillow_lic.codec import transcode

        return transcode
    if name in ("decode_batch", "decode_tensor", "encode_batch"):
        from pillow_lic import throughput

        return getattr(throughput, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_lic_opener()
