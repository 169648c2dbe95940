"""Which Ray a run uses, decided from the option, the environment and what this process already has. Imports no ray."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raymerge.errors import Problem, UsageError

ADDRESS_VARIABLE = "RAY_ADDRESS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`private`: start one for this run; `cluster`: join `address`; `connected`: this process is part of one already.

    `origin` names where the address came from, for messages.
    """

    kind: Literal["private", "cluster", "connected"]
    address: str = ""
    origin: str = ""


def choose_target(address: str | None, environ: Mapping[str, str], *, connected: bool) -> Target:
    """An explicit address wins, then a Ray this process is connected to, then `RAY_ADDRESS`, else a private one.

    A cluster that merely runs on this machine is never joined; `auto` asks for that by name. Raises `UsageError` for
    addresses that this program cannot run on.
    """
    if connected:
        if address:
            raise UsageError(
                Problem(
                    subject=f"--address {address}",
                    message="this process is already connected to a Ray",
                    remedy="leave the address out to use it, or call ray.shutdown() first",
                )
            )
        return Target(kind="connected")
    origin = "--address" if address else ADDRESS_VARIABLE
    chosen = address or environ.get(ADDRESS_VARIABLE, "")
    if chosen in ("", "local"):
        return Target(kind="private")
    _refuse_off_cluster(chosen, origin)
    return Target(kind="cluster", address=chosen, origin=origin)


def process_is_connected() -> bool:
    """Whether this process has an initialised Ray, found out without importing it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _refuse_off_cluster(address: str, origin: str) -> None:
    scheme, separator, _ = address.partition("://")
    if separator:
        message = "an address of the job server" if scheme in ("http", "https") else "an address for off-cluster use"
        raise off_cluster_error(address, origin, f"{message}, where a driver cannot run")
    if address != "auto" and re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:/\s]+):\d{1,5}", address) is None:
        raise UsageError(
            Problem(
                subject=f"{origin} {address}",
                message="not an address of a Ray cluster",
                remedy="give HOST:PORT of its head (6379 by default), auto for the cluster on this machine, or local",
            )
        )


def off_cluster_error(address: str, origin: str, message: str) -> UsageError:
    """The driver has to run on a node of the cluster: say how."""
    return UsageError(
        Problem(
            subject=f"{origin} {address}",
            message=message,
            remedy="run it on the cluster: raymerge submit CONFIG OUT --address http://HEAD:8265, "
            "or ray job submit -- raymerge merge CONFIG OUT",
        )
    )
