"""Makes golden files of context models with interleaved groups of channels, or of z: only for a new format version.

    python tests/golden/make_divided.py divided interleaved
    python tests/golden/make_divided.py hyper whole

The picture is that of make_contexts.py.
"""

from __future__ import annotations

import sys

from make_contexts import HERE, shown, with_every_context


def main(kind: str, division: str) -> None:
    """Code the picture with every context, on a lattice, in tiles and in scans, and record what comes back."""
    import pillow_lic
    from pillow_lic.models.context.schedule import CONTEXTS

    model = HERE / f"{kind}.safetensors"
    picture = with_every_context(kind, model, division)
    picture.save(HERE / f"scans-{kind}-none.lic", quality=6.2, model=model, context="none", progressive=True)
    plain = (HERE / f"scans-{kind}-none.lic").read_bytes()
    for name in CONTEXTS:
        (HERE / f"scans-{kind}-{name}.lic").write_bytes(pillow_lic.transcode(plain, name))
    shown(f"{kind}-none", f"scans-{kind}-none")


if __name__ == "__main__":
    main(*sys.argv[1:])
