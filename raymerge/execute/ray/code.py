"""Do all nodes run the driver's code and libraries? Code that they lack is sent to them; libraries have to agree."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymerge.errors import Problem, UsageError
from raymerge.execute.ray.nodes import local_versions, node_versions, version_differences

_PACKAGE = Path(__file__).resolve().parents[2]


def environment_of_tasks() -> Mapping[str, Any]:
    """The runtime_env in which every node runs what the driver runs: empty where all do so anyway.

    Raises `UsageError` naming nodes whose libraries differ. While a cluster has no worker yet, nobody can be asked and
    the code is sent.
    """
    driver, nodes = local_versions(), node_versions()
    problems = version_differences(driver, nodes)
    if problems:
        raise UsageError(*problems)
    if nodes and all(node.code == driver.code for node in nodes):
        return {}
    environment = {"py_modules": [_upload()]}
    others = [node.address for node in node_versions(environment) if node.code != driver.code]
    if others:  # their own comes first on the import path
        raise UsageError(*(_other_code(address) for address in others))
    return environment


def _other_code(subject: str) -> Problem:
    return Problem(
        subject=subject,
        message="runs another raymerge than the driver",
        remedy="install the driver's raymerge there, or remove that one: a node without any is sent the driver's",
    )


def _upload() -> str:
    """The address in the cluster of this very package. It is stored at the head, some 300 KB."""
    from ray._private.runtime_env import py_modules

    upload: Any = getattr(py_modules, "upload_py_modules_if_needed", None)  # what ray.init does with local folders
    if upload is None:
        raise UsageError(_other_code("cluster"))
    with tempfile.TemporaryDirectory() as scratch:
        wanted = {"py_modules": [str(_PACKAGE)], "excludes": ["**/__pycache__"]}
        sent = upload(wanted, include_gitignore=True, scratch_dir=scratch, logger=logging.getLogger(__name__))
    return str(sent["py_modules"][0])
