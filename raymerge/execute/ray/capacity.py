"""What the cluster's nodes hold, and whether a request could ever fit one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray

from raymerge.errors import ExecutionError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A living node and its totals, used or not."""

    node_id: str
    address: str
    cpus: float
    gpus: float
    memory_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, labels: Mapping[str, str]) -> bool:
        return labels.items() <= self.labels.items()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one attempt asks of one node."""

    cpus: float
    gpus: float
    memory_bytes: int

    def fits(self, node: Node) -> bool:
        return self.cpus <= node.cpus and self.gpus <= node.gpus and self.memory_bytes <= node.memory_bytes


def living_nodes() -> tuple[Node, ...]:
    """The nodes that take tasks, in the order in which they joined: draining ones are left out."""
    draining = draining_nodes()
    return tuple(
        Node(
            node_id=entry["NodeID"],
            address=entry["NodeManagerAddress"],
            cpus=entry["Resources"].get("CPU", 0.0),
            gpus=entry["Resources"].get("GPU", 0.0),
            memory_bytes=int(entry["Resources"].get("memory", 0)),
            labels=entry.get("Labels", {}),
        )
        for entry in ray.nodes()  # type: ignore[no-untyped-call]
        if entry["Alive"] and entry["NodeID"] not in draining
    )


def dead_node_ids() -> frozenset[str]:
    """The nodes that were part of the cluster and are not any more."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return frozenset(entry["NodeID"] for entry in nodes if not entry["Alive"])


def slot_count(request: Request, nodes: Sequence[Node]) -> int:
    """How many such requests run at a time on an otherwise idle cluster."""
    return sum(_slots_of(request, node) for node in nodes if request.fits(node))


def _slots_of(request: Request, node: Node) -> int:
    asked = ((request.cpus, node.cpus), (request.gpus, node.gpus), (request.memory_bytes, node.memory_bytes))
    return min((int(total // wanted) for wanted, total in asked if wanted), default=1)


def largest_memory(nodes: Sequence[Node]) -> int:
    return max((node.memory_bytes for node in nodes), default=0)


def no_room_error(request: Request, nodes: Sequence[Node]) -> ExecutionError:
    """Says what was asked and what exists."""
    asked = _describe(request.cpus, request.gpus, request.memory_bytes)
    kinds: dict[str, int] = {}
    for node in nodes:
        kind = _describe(node.cpus, node.gpus, node.memory_bytes)
        kinds[kind] = kinds.get(kind, 0) + 1
    have = "; ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "none"
    remedy = "lower --task-memory or --task-cpus, or add larger nodes"
    if nodes and all(node.gpus < request.gpus for node in nodes):
        remedy = "use --device cpu, lower --task-gpus, or add nodes with that much of a GPU"
    return ExecutionError(
        Problem(
            subject="cluster",
            message=f"no node can hold a task: one task asks for {asked}, the living nodes have {have}",
            remedy=remedy,
        )
    )


def _describe(cpus: float, gpus: float, memory_bytes: int) -> str:
    gpu_text = f"{gpus:g} GPU, " if gpus else ""
    return f"{cpus:g} CPU, {gpu_text}{memory_bytes / 2**30:.2f} GiB memory"


def draining_nodes() -> dict[str, float]:
    """When nodes that were given notice go, by id, in seconds since the epoch; infinity where that is not known."""
    # Only Ray's internals tell which nodes drain; a release without this call just shows none.
    state = getattr(getattr(ray, "_private", None), "state", None)
    draining = getattr(getattr(state, "state", None), "get_draining_nodes", None)
    found: dict[str, int] = draining() if draining is not None else {}
    return {node_id: deadline_ms / 1000 if deadline_ms else float("inf") for node_id, deadline_ms in found.items()}
