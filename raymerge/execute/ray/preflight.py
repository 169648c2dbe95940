"""Is there a Ray cluster at an address, and is this machine part of it? Found out before Ray is asked to join.

Joining an address where nothing answers takes Ray two minutes and ends the process (ray 2.60), so it is not tried.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

from raymerge.errors import ExecutionError, Problem
from raymerge.execute.ray.address import Target, off_cluster_error

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 5.0


def check_cluster(target: Target) -> str:
    """The HOST:PORT to join. Raises `ExecutionError` where no cluster answers, `UsageError` off the cluster."""
    address = _running_cluster(target) if target.address == "auto" else target.address
    _check_port(target, address)
    _check_answer(target, address)
    if _nodes_here() == 0:
        raise off_cluster_error(target.address, target.origin, "this machine is not a node of the cluster")
    return address


def _running_cluster(target: Target) -> str:
    resolve = getattr(_services(), "canonicalize_bootstrap_address", None)
    found: str | None = resolve("auto") if resolve is not None else None
    if found is None:
        raise _dead(target, "no Ray cluster was started on this machine")
    return found


def _check_port(target: Target, address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _dead(target, f"nothing answers there ({error})") from error


def _check_answer(target: Target, address: str) -> None:
    """Something listens; ask it as a Ray head, in a thread because the question cannot be cut short."""
    from ray import _raylet

    client: Any = getattr(_raylet, "GcsClient", None)
    if client is None:
        return
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(client(address=address).get_all_node_info(timeout=_ANSWER_SECONDS))
        except Exception as error:  # noqa: BLE001 - handed to the thread that asked
            answers.append(error)

    thread = threading.Thread(target=ask, name="raymerge-preflight", daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if not answers:
        raise _dead(target, "what listens there is not a Ray head")
    if isinstance(answers[0], Exception):
        raise _dead(target, f"the Ray head there does not let this process in ({answers[0]})")


def _nodes_here() -> int | None:
    """How many Ray nodes run on this machine; None where this release of Ray cannot tell."""
    find = getattr(_services(), "find_node_ids", None)
    return None if find is None else len(find())


def _services() -> Any:
    import ray

    return getattr(getattr(ray, "_private", None), "services", None)


def _dead(target: Target, message: str) -> ExecutionError:
    return ExecutionError(
        Problem(
            subject=f"{target.origin} {target.address}",
            message=message,
            remedy="start the cluster, or leave the address out (and RAY_ADDRESS unset) to use a private local Ray",
        )
    )
