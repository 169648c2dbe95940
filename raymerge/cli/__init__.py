"""The command line: reads arguments, calls the API, and is the only part that prints."""

from __future__ import annotations


def main() -> None:
    """Entry point of `raymerge` and of `python -m raymerge`."""
    from raymerge.cli.app import app

    app()
