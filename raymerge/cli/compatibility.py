"""Options of mergekit-yaml that have nothing to do here: accepted, so that commands in tutorials work unchanged."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import typer

from raymerge.cli.options import COMPATIBILITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An option that is read and changes nothing. `reason` says why, in the help and in one line when it is used.

    `kind` is bool for flags, which also have a --no- form. `speaks_when` is the flag value that asks for something.
    """

    name: str
    reason: str
    kind: type = bool
    speaks_when: bool = True

    @property
    def parameter(self) -> str:
        return self.name.replace("-", "_")

    def declarations(self) -> tuple[str, ...]:
        return (f"--{self.name}/--no-{self.name}" if self.kind is bool else f"--{self.name}",)

    def notice(self, value: object) -> str | None:
        """The line to print for `value`, or None where nothing was asked for."""
        if value is None or (self.kind is bool and value is not self.speaks_when):
            return None
        form = f"--no-{self.name}" if value is False else f"--{self.name}"
        return f"{form} has no effect: {self.reason}"


ACCEPTED: tuple[Accepted, ...] = (
    Accepted(name="allow-crimes", reason="tensor names and shapes decide what can be merged, not the architecture"),
    Accepted(
        name="unsafe-truncate-embeddings",
        reason="no row is cut off; vocabularies that differ need a tokenizer setting in the recipe",
    ),
    Accepted(name="trust-remote-code", reason="no code of a checkpoint is ever executed"),
    Accepted(name="lora-merge-cache", kind=str, reason="no merged copy of a model is stored"),
    Accepted(
        name="lora-merge-dtype", kind=str, reason="inputs are read exactly and rounded once, into the output's dtype"
    ),
    Accepted(name="low-cpu-memory", reason="tasks stream within --task-memory on any device"),
    Accepted(name="lazy-unpickle", reason="only the byte ranges that are needed are read in any case"),
    Accepted(name="read-to-gpu", reason="--device decides where blocks go"),
    Accepted(name="multi-gpu", reason="every task takes one device; Ray spreads the tasks"),
    Accepted(name="async-write", reason="writing overlaps with computing in any case"),
    Accepted(name="write-threads", kind=int, reason="writing overlaps with computing in any case"),
    Accepted(name="clone-tensors", reason="a layer may be used any number of times in any case"),
    Accepted(name="safe-serialization", speaks_when=False, reason="the output is always safetensors"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compatibility:
    """What the compatibility options ask for: a device, a number of threads, and lines about those without effect."""

    device: str | None
    threads: int | None
    notices: tuple[str, ...]


Command = Callable[..., None]

_CUDA = typer.Option("--cuda/--no-cuda", help="Same as --device cuda.", rich_help_panel=COMPATIBILITY)
_GPU_RICH = typer.Option("--gpu-rich", help="Same as --device cuda.", rich_help_panel=COMPATIBILITY)
_THREADS = typer.Option("-j", "--num-threads", min=1, help="Same as --task-cpus.", rich_help_panel=COMPATIBILITY)
_CACHE = typer.Option(
    "--transformers-cache", metavar="TEXT", help="Same as HF_HUB_CACHE.", rich_help_panel=COMPATIBILITY
)


def _added_parameters() -> list[inspect.Parameter]:
    annotations: dict[str, Any] = {
        "cuda": Annotated[bool | None, _CUDA],
        "gpu_rich": Annotated[bool | None, _GPU_RICH],
        "num_threads": Annotated[int | None, _THREADS],
        "transformers_cache": Annotated[str | None, _CACHE],
    }
    for each in ACCEPTED:
        text = f"No effect: {each.reason}."
        option = typer.Option(*each.declarations(), help=text, show_default=False, rich_help_panel=COMPATIBILITY)
        annotations[each.parameter] = Annotated[each.kind | None, option]
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, kind, default=None, annotation=note) for name, note in annotations.items()]


def with_compatibility(command: Command) -> Command:
    """Add mergekit-yaml's other options to `command`, which gets what they ask for as its argument `compatibility`."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "compatibility"]
    added = _added_parameters()

    @wraps(command)
    def wrapper(**values: Any) -> None:
        asked = {parameter.name: values.pop(parameter.name) for parameter in added}
        command(**values, compatibility=understand(asked))

    del wrapper.__wrapped__  # typer must see the signature below, not the inner one
    wrapper.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {}
    return wrapper


def understand(asked: Mapping[str, Any]) -> Compatibility:
    """Turn the options' values into what they mean. --transformers-cache goes to this process's environment."""
    if asked["transformers_cache"]:
        os.environ["HF_HUB_CACHE"] = os.path.expanduser(asked["transformers_cache"])  # noqa: PTH111 - an option's text
    notices = (each.notice(asked[each.parameter]) for each in ACCEPTED)
    return Compatibility(
        device="cuda" if asked["cuda"] or asked["gpu_rich"] else None,
        threads=asked["num_threads"],
        notices=tuple(notice for notice in notices if notice),
    )
