"""How a .lic file begins.  A module of its own, so that registering the format imports next to nothing."""

SIGNATURE = b"\x8bLIC\r\n\x1a\n"


def accept(prefix: bytes) -> bool:
    """Whether a file that begins so is one of ours."""
    return prefix.startswith(SIGNATURE)
