"""Small questions asked on every node: can it read this file, which versions does it run?"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymerge.errors import ExecutionError, Problem
from raymerge.execute.ray.capacity import Node, living_nodes
from raymerge.execute.ray.faults import classify, final_error

T = TypeVar("T")

_ANSWER_SECONDS = 60.0
_COMPARED = ("raymerge", "ray", "torch", "numba", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVersions:
    """What one node runs: (package, version) pairs, "" for a package that is not there."""

    address: str
    versions: tuple[tuple[str, str], ...]


def nodes_without(nonce_path: str, nonce: str) -> list[str]:
    """The addresses of the nodes that do not find `nonce` in the file `nonce_path`: they do not share this disk."""
    return [node.address for node, found in _ask_every_node(_nonce_question(nonce_path, nonce)) if not found]


def node_versions() -> list[NodeVersions]:
    """The versions on every node that runs tasks. raymerge need not be installed there."""
    return [
        NodeVersions(address=node.address, versions=versions)
        for node, versions in _ask_every_node(_version_question(_COMPARED))
    ]


def local_versions() -> NodeVersions:
    """The driver's side of the comparison."""
    return NodeVersions(address="driver", versions=_version_question(_COMPARED)())


def version_differences(driver: NodeVersions, nodes: Sequence[NodeVersions]) -> tuple[Problem, ...]:
    """One problem per node and package that differs from the driver's; a Python differs by its minor version."""
    expected = dict(driver.versions)
    return tuple(
        Problem(
            subject=node.address,
            message=f"runs {name} {found or 'not at all'}, the driver {expected[name] or 'not at all'}",
            remedy="use one image or environment for driver and workers",
        )
        for node in nodes
        for name, found in node.versions
        if found != expected[name]
    )


# The questions are closures: Ray's pickle packs those by value, so a node without raymerge can answer too.


def _nonce_question(path: str, nonce: str) -> Callable[[], bool]:
    def holds_nonce() -> bool:
        try:
            with open(path, encoding="ascii") as file:  # noqa: PTH123 - plain, it runs by value on another machine
                return file.read() == nonce
        except (OSError, UnicodeDecodeError):
            return False

    return holds_nonce


def _version_question(packages: tuple[str, ...]) -> Callable[[], tuple[tuple[str, str], ...]]:
    def versions() -> tuple[tuple[str, str], ...]:
        from importlib import metadata, util

        def version_of(name: str) -> str:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                return "(not installed, but importable)" if util.find_spec(name) else ""

        python = ".".join(platform.python_version_tuple()[:2])
        return (("python", python), *((name, version_of(name)) for name in packages))

    return versions


def _ask_every_node(question: Callable[[], T]) -> list[tuple[Node, T]]:
    """Answers of the nodes that run tasks (a head with 0 CPUs runs none), in the order in which they joined.

    A node that is lost meanwhile is left out.
    """
    nodes = [node for node in living_nodes() if node.cpus > 0]
    remote = ray.remote(question)
    pending = [
        remote.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False),
        ).remote()
        for node in nodes
    ]
    done, _ = ray.wait(pending, num_returns=len(pending), timeout=_ANSWER_SECONDS) if pending else ([], [])
    answers = []
    for node, reference in zip(nodes, pending, strict=True):
        if reference not in done:
            ray.cancel(reference, force=True)
            raise ExecutionError(Problem(subject=node.address, message="the node does not answer within a minute"))
        try:
            answers.append((node, ray.get(reference)))
        except RayError as error:
            if classify(error) is None and _is_living(node):
                raise final_error("node check", node.address, error) from error
    return answers


def _is_living(node: Node) -> bool:
    return any(living.node_id == node.node_id for living in living_nodes())
