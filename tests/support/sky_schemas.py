"""SkyPilot's task schema, read from its package without what it depends on (some 450 MB)."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def find_sky() -> Path | None:
    """Where the package lies; nothing of it is imported."""
    spec = importlib.util.find_spec("sky")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else None


def _package(name: str, folder: Path) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(__path__=[str(folder.joinpath(*name.split(".")[1:]))], __version__="0")
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The package's folders without their `__init__`, and a stand-in for the one module that loads most of SkyPilot."""
    before = set(sys.modules)
    for name in ("sky", "sky.skylet", "sky.utils", "sky.setup_files"):
        sys.modules[name] = _package(name, folder)
    autostop = types.ModuleType("sky.skylet.autostop_lib")
    modes = types.SimpleNamespace(supported_modes=lambda: ["jobs_and_ssh", "jobs", "none"])
    vars(autostop).update(AutostopWaitFor=modes)
    sys.modules[autostop.__name__] = autostop
    vars(sys.modules["sky.skylet"]).update(autostop_lib=autostop)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def task_and_resources(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schemas of a task and of its `resources`; both refuse unknown keys."""
    with _importable(folder):
        from sky.utils import schemas

        # The schema of the key `config` is built from most of SkyPilot; the task has no such key.
        schemas._task_config_schema = lambda: {"not": {}}
        return schemas.get_task_schema(), schemas.get_resources_schema()
