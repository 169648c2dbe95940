"""The command line: reads arguments, calls the API, and is the only part that prints."""

from __future__ import annotations


def main() -> None:
    """Entry point of `raymerge` and of `python -m raymerge`."""
    import atexit
    import gc

    gc.disable()  # what imports make stays: looking for garbage among it, now and later, took a tenth of a second
    from raymerge.cli.app import app

    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)  # and another one at the end, when all of it goes anyway
    app()
