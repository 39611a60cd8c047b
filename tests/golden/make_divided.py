"""Makes the golden files of context models with interleaved groups of channels: only for a new format version.

    python tests/golden/make_divided.py

The picture is that of make_contexts.py.
"""

from __future__ import annotations

from make_contexts import HERE, shown, with_every_context


def main() -> None:
    """Code the picture with every context, on a lattice, in tiles and in scans, and record what comes back."""
    import pillow_lic
    from pillow_lic.models.context.schedule import CONTEXTS

    model = HERE / "divided.safetensors"
    picture = with_every_context("divided", model, "interleaved")
    picture.save(HERE / "scans-divided-none.lic", quality=6.2, model=model, context="none", progressive=True)
    plain = (HERE / "scans-divided-none.lic").read_bytes()
    for name in CONTEXTS:
        (HERE / f"scans-divided-{name}.lic").write_bytes(pillow_lic.transcode(plain, name))
    shown("divided-none", "scans-divided-none")


if __name__ == "__main__":
    main()
