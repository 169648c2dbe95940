"""What `raymerge verify` and `raymerge status` found."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from raymerge.cli.screens.problems import problem_list
from raymerge.cli.screens.results import quoted
from raymerge.cli.screens.text import duration, grid, plural
from raymerge.output.status import StatusReport
from raymerge.output.verify import VerifyReport
from raymerge.sizes import format_size

_SHOWN_NAMES = 3
# A shard takes about a minute at most, so a run that wrote none for two has stopped or is between long shards.
_QUIET_SECONDS = 120


def verify_screen(report: VerifyReport) -> RenderableType:
    size = (
        f"{plural(report.shard_count, 'shard')}, {plural(report.tensor_count, 'tensor')}, {format_size(report.nbytes)}"
    )
    verdict = "ok" if report.ok else plural(len(report.problems), "problem")
    table = grid({"no_wrap": True, "style": "dim"}, {"overflow": "fold"})
    for phrase in report.checked:
        table.add_row("checked", Text(phrase))
    for phrase in report.skipped:
        table.add_row("skipped", Text(phrase, style="yellow"))
    title = Text.assemble((verdict, "bold green" if report.ok else "bold red"), f"  {report.out}  {size}")
    return Group(title, table, *([problem_list(report.problems)] if report.problems else []))


def verify_values(report: VerifyReport) -> dict[str, Any]:
    return {"ok": report.ok, **asdict(report)}


def status_screen(report: StatusReport, *, now: float) -> RenderableType:
    """`now` is in seconds since 1970, as the report's times are."""
    table = grid({"no_wrap": True, "style": "bold"}, {"overflow": "fold"})
    manifest = report.manifest
    if manifest is None:
        table.add_row("nothing", Text(f"no merge has begun in {report.out}"))
        return table
    figures = (
        f"{len(report.done)} of {plural(len(manifest.shards), 'shard')}, "
        f"{format_size(report.done_bytes)} of {format_size(manifest.nbytes)}"
    )
    about = _about(manifest.summary, len(manifest.inputs))
    state = "complete" if report.is_complete else "unfinished"
    table.add_row(state, Text(f"{figures}   plan {manifest.plan_digest[:8]}   {about}"))
    for phrase in _activity(report, now):
        table.add_row("activity", phrase)
    if report.wrong:
        table.add_row("wrong", Text(f"{_names(report.wrong)}: not the size or plan that is expected; made again"))
    if report.loose:
        table.add_row("loose", Text(f"{_names(report.loose)}: begun and not finished"))
    if not report.is_complete:
        quiet = report.last_activity is not None and now - report.last_activity > _QUIET_SECONDS
        table.add_row("unknown", "whether a driver lives" + ("; rerun the same command" if quiet else ""))
    else:
        table.add_row("next", Text(f"raymerge verify {quoted(report.out)}"))
    return table


def _about(summary: Mapping[str, Any], input_count: int) -> str:
    method = summary.get("merge_method")
    return f"{method}, {plural(input_count, 'model')}" if method else plural(input_count, "model")


def _activity(report: StatusReport, now: float) -> list[str]:
    if report.last_activity is None:
        return []
    parts = [f"last {'shard' if report.done else 'sign'} {duration(max(now - report.last_activity, 0))} ago"]
    if report.first_activity is not None and len(report.done) > 1:
        seconds = report.last_activity - report.first_activity
        if seconds > 0:
            parts.append(f"{(len(report.done) - 1) / seconds * 60:.3g} a minute")
    if report.first_activity is not None:
        parts.append(f"first at {time.strftime('%Y-%m-%d %H:%M', time.localtime(report.first_activity))}")
    return [", ".join(parts)]


def _names(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def status_values(report: StatusReport) -> dict[str, Any]:
    manifest = report.manifest
    return {
        "out": report.out,
        "state": "nothing" if manifest is None else "complete" if report.is_complete else "unfinished",
        "plan_digest": manifest.plan_digest if manifest else None,
        "shard_count": len(manifest.shards) if manifest else 0,
        "done_count": len(report.done),
        "nbytes": manifest.nbytes if manifest else 0,
        "done_bytes": report.done_bytes,
        "missing": list(report.missing),
        "wrong": list(report.wrong),
        "loose": list(report.loose) if report.loose is not None else None,
        "first_activity": report.first_activity,
        "last_activity": report.last_activity,
    }
