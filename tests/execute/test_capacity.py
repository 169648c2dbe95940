"""What is said where no node can hold a task."""

from __future__ import annotations

import pytest

from raymerge.execute.ray.capacity import Node, Request, no_room_error


def node(gpus: float) -> Node:
    return Node(node_id="n", address="10.0.0.1", cpus=2, gpus=gpus, memory_bytes=1 << 30)


@pytest.mark.parametrize(
    ("request_", "nodes", "remedy"),
    [
        (Request(cpus=1, gpus=1, memory_bytes=1), [node(0), node(0.5)], "use --device cpu, lower --task-gpus"),
        (Request(cpus=1, gpus=1, memory_bytes=1 << 40), [node(0), node(1)], "lower --task-memory or --task-cpus"),
        (Request(cpus=1, gpus=0, memory_bytes=1 << 40), [node(0)], "lower --task-memory or --task-cpus"),
        (Request(cpus=1, gpus=1, memory_bytes=1), [], "lower --task-memory or --task-cpus"),
    ],
)
def test_the_remedy_names_what_is_missing(request_: Request, nodes: list[Node], remedy: str) -> None:
    assert remedy in str(no_room_error(request_, nodes))
