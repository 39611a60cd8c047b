"""``lic autoload``."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("autoload", help="know .lic without an import", description=run.__doc__)
    parser.add_argument("state", choices=("on", "off", "status"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Let every script of this Python environment open and save .lic files without importing pillow_lic.

    "on" writes a hook into the environment's site-packages that Python runs when it starts: once a script
    imports Pillow or imageio, .lic is registered. "off" removes it.
    """
    from pillow_lic import autoload

    if args.state != "status":
        (autoload.turn_on if args.state == "on" else autoload.turn_off)()
    path = autoload.hook()
    print(f"autoload is {'on' if path.exists() else 'off'} ({path})")
