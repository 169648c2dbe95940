"""What a cluster would take for a plan, and what that estimate rests on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from raymerge.cli.screens.text import duration, grid, plural
from raymerge.planning.prediction import BOOT, Prediction
from raymerge.sizes import format_size


def prediction_screen(found: Prediction) -> RenderableType:
    table = grid({"style": "dim", "no_wrap": True}, {"overflow": "fold"})
    machine = found.cluster.machine
    table.add_row(
        "cluster",
        Text(
            f"{found.cluster.nodes} x {machine.name} "
            f"({plural(machine.cores, 'core')}, {format_size(machine.memory_bytes)}, {machine.gbps:g} Gb/s)"
        ),
    )
    table.add_row("time", Text(f"about {duration(found.seconds)}{_cost(found)}", style="bold"))
    first, *others = (f"{name} {duration(seconds)}" for name, seconds in found.seconds_by_resource.items())
    table.add_row("binds", Text(f"{first}; then {', '.join(others)}"))
    table.add_row("more", Text(_more(found)))
    assumed = [Text(f"- {line}", style="dim") for line in found.assumptions]
    closing = Text("CPU time is measured; all else is a model that has not been held against a cluster.", style="dim")
    return Padding(Group(Text(""), table, closing, *assumed), (0, 0, 0, 2))


def _cost(found: Prediction) -> str:
    prices = [(found.dollars, "on demand"), (found.spot_dollars, "spot")]
    known = [f"${dollars:.2f} {kind}" for dollars, kind in prices if dollars is not None]
    return f", {' or '.join(known)}, ${found.request_dollars:.2f} for requests" if known else ""


def _more(found: Prediction) -> str:
    why = " (booting is most of it)" if found.binding == BOOT else ""
    if found.enough_nodes < found.useful_nodes:
        saved = f"than {plural(found.enough_nodes, 'node')} save little: twice as many, less than a tenth{why}"
    elif found.cluster.nodes < found.useful_nodes:
        saved = "nodes save time"
    else:
        saved = "nodes save nothing"
    return f"{saved}; {plural(found.useful_nodes, 'node')} would have one shard each"


def prediction_values(found: Prediction) -> dict[str, Any]:
    """As JSON values."""
    return asdict(found)
