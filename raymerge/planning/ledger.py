"""The ledger: what becomes of every tensor of every input. What nothing accounts for is an error, never a silence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.errors import Problem
from raymerge.planning.nouns import LedgerLine

MERGED, COPIED, DROPPED = "merged", "copied", "dropped"
_RANK = {MERGED: 2, COPIED: 1, DROPPED: 0}


class Ledger:
    """Collects fates by model and tensor; a tensor that is used twice keeps its highest fate."""

    def __init__(self) -> None:
        self._fates: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)

    def record(self, model: str, tensor: str, fate: str, rule: str) -> None:
        fates = self._fates[model]
        known = fates.get(tensor)
        if known is None or _RANK[fate] > _RANK[known[0]]:
            fates[tensor] = (fate, rule)

    def record_helpers(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Give every stored tensor that helps to make another one the fate of that one."""
        for checkpoint in checkpoints:
            fates = self._fates[checkpoint.reference]
            for name, helper in checkpoint.helpers.items():
                if helper.serves in fates:
                    fate = DROPPED if helper.is_dropped else fates[helper.serves][0]
                    self.record(checkpoint.reference, name, fate, helper.rule)

    def unaccounted(self, checkpoints: Iterable[Checkpoint]) -> tuple[Problem, ...]:
        """A problem for every model with tensors that no rule mentions."""
        problems = []
        for checkpoint in checkpoints:
            fates = self._fates[checkpoint.reference]
            left = [name for name in (*checkpoint.tensors, *checkpoint.helpers) if name not in fates]
            if left:
                shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
                problems.append(
                    Problem(
                        subject=checkpoint.reference,
                        message=f"nothing in the recipe says what becomes of {shown}",
                        remedy=f"add modules named {', '.join(_beginnings(left, fates)[:5])}",
                    )
                )
        return tuple(problems)

    def lines(self) -> tuple[LedgerLine, ...]:
        """One line per model, fate and rule, in the order in which they first occurred."""
        grouped: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for model, fates in self._fates.items():
            for tensor, (fate, rule) in fates.items():
                grouped[model, fate, rule].append(tensor)
        return tuple(
            LedgerLine(model=model, fate=fate, rule=rule, tensors=tuple(tensors))
            for (model, fate, rule), tensors in grouped.items()
        )


def _beginnings(left: Iterable[str], named: Iterable[str]) -> list[str]:
    """The shortest beginnings of the names that are left which no other name has, so that a module can be called so."""
    taken = {beginning for name in named for beginning in _prefixes(name)}
    return [*dict.fromkeys(next((each for each in _prefixes(name) if each not in taken), name) for name in left)]


def _prefixes(name: str) -> Iterator[str]:
    """Of a.b.c: a, a.b and a.b.c."""
    return accumulate(name.split("."), "{}.{}".format)
