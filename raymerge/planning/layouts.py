"""Inputs that store one architecture in different ways, read as the leading model stores it: other prefixes in front of
the names, and matrices that are fused in one input and apart in the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.errors import Problem
from raymerge.planning.fused import clashes, with_joins, with_views
from raymerge.planning.stack import HEAD, dissect, is_sensory, sides
from raymerge.recipe.nouns import ModelReference

_SENSORY = re.compile(r"vision|visual|audio|speech")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Checkpoints whose names are the leader's wherever they mean the same.

    `beside_text` are the leader's tensors that belong to its vision or audio parts, which the models in `text_only`, by
    their reference, do not have.
    """

    checkpoints: Mapping[ModelReference, Checkpoint]
    problems: tuple[Problem, ...] = ()
    text_only: frozenset[str] = frozenset()
    beside_text: frozenset[str] = frozenset()

    def is_beside(self, name: str, models: Iterable[str]) -> bool:
        """Whether text models lack the tensor because it is no part of one."""
        return name in self.beside_text and all(model in self.text_only for model in models)


def align_layouts(opened: Mapping[ModelReference, Checkpoint], leader: ModelReference | None) -> Layouts:
    """Read every model as `leader` names things. Those that cannot be are left out, with a problem each."""
    lead = opened.get(leader) if leader is not None else next(iter(opened.values()), None)
    if lead is None:
        return Layouts(checkpoints=opened)
    aligned: dict[ModelReference, Checkpoint] = {}
    problems: list[Problem] = []
    text_only: set[str] = set()
    beside: frozenset[str] = frozenset()
    for reference, checkpoint in opened.items():
        if checkpoint is lead or checkpoint.tensors.keys() == lead.tensors.keys():
            aligned[reference] = checkpoint
            continue
        matched = _match(checkpoint, lead)
        viewed = with_joins(with_views(matched.checkpoint, lead), lead)
        found = (*matched.problems, *clashes(viewed, lead))
        problems += found
        if not found:
            aligned[reference] = viewed
        if matched.beside_text:
            text_only.add(checkpoint.reference)
            beside = matched.beside_text
    return Layouts(
        checkpoints=aligned, problems=tuple(problems), text_only=frozenset(text_only), beside_text=beside
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matched:
    checkpoint: Checkpoint
    problems: tuple[Problem, ...] = ()
    beside_text: frozenset[str] = frozenset()


def _match(checkpoint: Checkpoint, lead: Checkpoint) -> _Matched:
    """`checkpoint` with the leader's prefixes, where both have one stack of layers that can only be the same."""
    own, theirs = _stacks(checkpoint), _stacks(lead)
    if len(own) != 1 or not theirs:
        return _Matched(checkpoint=checkpoint)
    stack = own[0]
    fitting = [each for each in theirs if each == stack] or _same_stacks(stack, checkpoint, theirs, lead)
    if len(fitting) > 1:
        found = ", ".join(f"{each}.N" for each in fitting)
        message = f"its layers {stack}.N could be {found} of {lead.reference}"
        remedy = f"use a model whose tensors are named as in {lead.reference}"
        return _Matched(
            checkpoint=checkpoint, problems=(Problem(subject=checkpoint.reference, message=message, remedy=remedy),)
        )
    if not fitting:
        return _Matched(checkpoint=checkpoint)
    problems: tuple[Problem, ...] = ()
    if fitting[0] != stack:
        checkpoint, problems = _renamed(checkpoint, lead, _heads(stack, fitting[0]))
    return _Matched(
        checkpoint=checkpoint, problems=problems, beside_text=_beside_text(checkpoint, lead, _parent(fitting[0]))
    )  # fmt: skip


def _stacks(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The prefixes of the stacks that are not of a vision or audio tower."""
    stacks = dissect(checkpoint.tensors, checkpoint.config).stacks
    return tuple(stack.prefix for stack in stacks if not is_sensory(stack.prefix))


def _same_stacks(stack: str, checkpoint: Checkpoint, theirs: Iterable[str], lead: Checkpoint) -> list[str]:
    """The leader's stacks that are called alike and whose first layers hold a tensor of the same name."""
    own = _first_layer(checkpoint, stack)
    return [
        each
        for each in theirs
        if each.rpartition(".")[2] == stack.rpartition(".")[2]
        and sides(each) == sides(stack)
        and own & _first_layer(lead, each)
    ]  # fmt: skip


def _first_layer(checkpoint: Checkpoint, stack: str) -> set[str]:
    start = f"{stack}.0."
    return {name.removeprefix(start) for name in checkpoint.tensors if name.startswith(start)}


def _heads(own: str, theirs: str) -> tuple[str, str]:
    """What is left of two prefixes without the components that both end in: ("", "language_model")."""
    a, b = own.split("."), theirs.split(".")
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return ".".join(a), ".".join(b)


def _renamed(
    checkpoint: Checkpoint, lead: Checkpoint, heads: tuple[str, str]
) -> tuple[Checkpoint, tuple[Problem, ...]]:
    own, theirs = heads
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in checkpoint.tensors:
        candidates = list(dict.fromkeys(_candidates(name, own, theirs, lead)))
        if len(candidates) > 1:
            message = f"could be {' or '.join(candidates)} of {lead.reference}"
            return checkpoint, (_ambiguous(checkpoint, name, message, lead),)
        names[name] = new = candidates[0]
        if new in taken:
            return checkpoint, (_ambiguous(checkpoint, name, f"and {taken[new]} could both be {new}", lead),)
        taken[new] = name
    helpers = {
        name: replace(each, serves=names.get(each.serves, each.serves)) for name, each in checkpoint.helpers.items()
    }
    note = f"{_join(own, '*')} is read as {_join(theirs, '*')}, as {lead.reference} has it"
    return replace(
        checkpoint,
        tensors={names[name]: ref for name, ref in checkpoint.tensors.items()},
        helpers=helpers,
        notes=(*checkpoint.notes, note),
    ), ()


def _ambiguous(checkpoint: Checkpoint, name: str, message: str, lead: Checkpoint) -> Problem:
    return Problem(
        subject=f"{checkpoint.reference}: {name}",
        message=message,
        remedy=f"use a model whose tensors are named as in {lead.reference}",
    )


def _candidates(name: str, own: str, theirs: str, lead: Checkpoint) -> list[str]:
    """Names of the leader that this one can mean: the prefix exchanged, else with what else stands before the layers.

    If it has none of them, the name as it would be there.
    """
    exchanged = _join(theirs, name[len(own) :].removeprefix(".")) if _is_under(name, own) else name
    if exchanged in lead.tensors:
        return [exchanged]
    possible = dict.fromkeys(_join(outer, rest) for rest in _endings(name, own) for outer in _beginnings(theirs))
    return [each for each in possible if each in lead.tensors] or [exchanged]


def _endings(name: str, prefix: str) -> Iterator[str]:
    """The name, and what is left of it without components that the prefix has."""
    yield name
    first, _, rest = name.partition(".")
    if rest and first in prefix.split("."):
        yield from _endings(rest, prefix)


def _beginnings(prefix: str) -> Iterator[str]:
    yield prefix
    while prefix:
        prefix = _parent(prefix)
        yield prefix


def _beside_text(checkpoint: Checkpoint, lead: Checkpoint, parent: str) -> frozenset[str]:
    """The leader's tensors beside its language model, where `checkpoint` is a language model and nothing else."""
    if not any(isinstance(part, Mapping) and _SENSORY.search(key) for key, part in lead.config.items()):
        return frozenset()
    if not all(_is_under(name, parent) or HEAD.search(name) for name in checkpoint.tensors):
        return frozenset()
    return frozenset(name for name in lead.tensors if not _is_under(name, parent) and not HEAD.search(name))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _parent(stack: str) -> str:
    return stack.rpartition(".")[0]


def _is_under(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}.")
