"""From pixels and options to a coded file and back: the only package that knows every stage.

Saving: analysis transform, hyperprior, quantiser, range coder, container.  Opening: the same
backwards.  Only the symbols and what decides their probabilities need to be exact; the synthesis
transform is ordinary floating point.
"""

from pillow_lic.codec.analysis import analyse
from pillow_lic.codec.batches import decode_many, encode_many
from pillow_lic.codec.common import reporting_to
from pillow_lic.codec.decoding import decode, transcode
from pillow_lic.codec.encoding import encode

__all__ = ["analyse", "decode", "decode_many", "encode", "encode_many", "reporting_to", "transcode"]
