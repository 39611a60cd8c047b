"""A learned image codec for Pillow and imageio.

Importing this package registers the format, so that ``im.save("x.lic")``, ``Image.open("x.lic")``
and ``imageio.imread("x.lic")`` work.  Torch is imported when the first picture is coded.
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
