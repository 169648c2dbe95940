"""Small questions asked on every node: can it read this file, which versions does it run?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymerge.errors import ExecutionError, Problem
from raymerge.execute.ray.capacity import Node, living_nodes
from raymerge.execute.ray.faults import classify, final_error

T = TypeVar("T")

_ANSWER_SECONDS = 60.0
# What decides the bytes of a result; Ray compares its own version and Python's when a cluster is joined.
_COMPARED = ("torch", "numba")
CODE = "raymerge"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVersions:
    """What one node runs: (package, version) pairs, "" for a package that is not there. Of raymerge, a digest."""

    address: str
    versions: tuple[tuple[str, str], ...]

    @property
    def code(self) -> str:
        return dict(self.versions)[CODE]


def nodes_without(nonce_path: str, nonce: str) -> list[str]:
    """The addresses of the nodes that do not find `nonce` in the file `nonce_path`: they do not share this disk."""
    return [node.address for node, found in _ask_every_node(_nonce_question(nonce_path, nonce)) if not found]


def node_versions(runtime_env: Mapping[str, Any] | None = None) -> list[NodeVersions]:
    """The versions on every node that runs tasks, inside `runtime_env`. raymerge need not be installed there."""
    return [
        NodeVersions(address=node.address, versions=versions)
        for node, versions in _ask_every_node(_version_question(_COMPARED), runtime_env or {})
    ]


def local_versions() -> NodeVersions:
    """The driver's side of the comparison."""
    return NodeVersions(address="driver", versions=_version_question(_COMPARED)())


def version_differences(driver: NodeVersions, nodes: Sequence[NodeVersions]) -> tuple[Problem, ...]:
    """One problem per node and library that differs from the driver's. raymerge's own code is not among them."""
    expected = dict(driver.versions)
    return tuple(
        Problem(
            subject=node.address,
            message=f"runs {name} {found or 'not at all'}, the driver {expected[name] or 'not at all'}",
            remedy="use one image or environment for driver and workers",
        )
        for node in nodes
        for name, found in node.versions
        if name != CODE and found != expected[name]
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
    def version_of(name: str) -> str:
        from importlib import metadata

        try:
            return metadata.version(name).partition("+")[0]  # builds for one device or another round alike
        except metadata.PackageNotFoundError:
            return ""

    def digest_of(name: str) -> str:
        """Of the sources: two trees in development have one version."""
        import hashlib
        import pathlib
        from importlib import util

        spec = util.find_spec(name)
        folders = [pathlib.Path(each) for each in (spec.submodule_search_locations or ())] if spec else []
        sources = sorted((path.relative_to(folder), path) for folder in folders for path in folder.rglob("*.py"))
        digest = hashlib.sha256()
        for relative, path in sources:
            digest.update(f"{relative}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        return digest.hexdigest()[:16] if sources else ""

    code = CODE  # a closure is packed with what it holds, not with this module

    def versions() -> tuple[tuple[str, str], ...]:
        return ((code, digest_of(code)), *((name, version_of(name)) for name in packages))

    return versions


def _ask_every_node(question: Callable[[], T], runtime_env: Mapping[str, Any] | None = None) -> list[tuple[Node, T]]:
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
            **({"runtime_env": dict(runtime_env)} if runtime_env else {}),
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
