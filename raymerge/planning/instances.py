"""Machines to rent, for estimates of time and cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raymerge.errors import Problem, UsageError
from raymerge.recipe.suggest import did_you_mean

GIB = 1 << 30
# Prices are per hour, Linux, in the provider's cheapest large US region (us-east-1, us-central1, East US). On-demand
# prices are those of the price lists; spot prices move with time and zone, so these are what a month's mean may be.
PRICES_AS_OF = "June 2025"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceType:
    """`gbps` is what the network sustains in each direction, not what it bursts to; prices are 0 where not known."""

    name: str
    cores: int
    memory_bytes: int
    gbps: float
    dollars_per_hour: float = 0.0
    spot_dollars_per_hour: float = 0.0


def _type(name: str, cores: int, gib: int, gbps: float, prices: tuple[float, float]) -> InstanceType:
    return InstanceType(
        name=name,
        cores=cores,
        memory_bytes=gib * GIB,
        gbps=gbps,
        dollars_per_hour=prices[0],
        spot_dollars_per_hour=prices[1],
    )


INSTANCE_TYPES = (
    _type("m7i.4xlarge", 16, 64, 6.25, (0.806, 0.34)),
    _type("m7i.48xlarge", 192, 768, 50.0, (9.677, 4.10)),
    _type("m7g.4xlarge", 16, 64, 7.5, (0.653, 0.28)),
    _type("c7i.4xlarge", 16, 32, 6.25, (0.714, 0.31)),
    _type("c6in.8xlarge", 32, 64, 50.0, (1.814, 0.75)),
    _type("c7gn.4xlarge", 16, 32, 50.0, (0.998, 0.40)),
    _type("c7gn.8xlarge", 32, 64, 100.0, (1.997, 0.80)),
    _type("c7gn.16xlarge", 64, 128, 200.0, (3.994, 1.60)),
    _type("n2-standard-16", 16, 64, 32.0, (0.777, 0.24)),
    _type("Standard_D16s_v5", 16, 64, 12.5, (0.768, 0.19)),
)


def instance_type(name: str) -> InstanceType:
    """Raises UsageError for one that is not in the table, with the nearest that is."""
    known = {each.name: each for each in INSTANCE_TYPES}
    if name in known:
        return known[name]
    hint = did_you_mean(name, known)
    raise UsageError(
        Problem(
            subject="--cluster",
            message=f"no machine {name!r} in the table: {', '.join(known)}",
            remedy=hint or "describe others by --nodes N --gbps G --cores C",
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`nodes` machines of one type, every one of which makes shards."""

    nodes: int
    machine: InstanceType


_CLUSTER = re.compile(r"(?:(\d{1,6})\s*[x×*]\s*)?([A-Za-z][\w.-]*)", re.ASCII)
_GIB_PER_CORE = 2  # of machines that are described by hand: what compute-optimised ones have


def parse_cluster(text: str) -> Cluster:
    """`20 x c7gn.4xlarge`, or the name of one machine alone."""
    found = _CLUSTER.fullmatch(text.strip())
    if found is None or found[1] == "0":
        raise UsageError(
            Problem(subject="--cluster", message=f"found {text!r}", remedy='write "20 x c7gn.4xlarge"'),
        )
    return Cluster(nodes=int(found[1] or 1), machine=instance_type(found[2]))


def described_cluster(*, nodes: int, gbps: float, cores: int) -> Cluster:
    """Machines that are in no table, whose price nobody knows."""
    machine = InstanceType(
        name=f"{cores} cores, {gbps:g} Gb/s", cores=cores, memory_bytes=cores * _GIB_PER_CORE * GIB, gbps=gbps
    )
    return Cluster(nodes=nodes, machine=machine)
