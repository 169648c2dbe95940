"""Rows of embeddings and heads, aligned to the output's vocabulary by token: which row of which model each one is.

A row that a model lacks comes from a rule of the recipe, else from the base, else it is the mean of the models that
have it (of one model: that row), else zeros. Rows that no token has (padding) are matched by their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from raymerge.checkpoint.config import tie_word_embeddings, untied
from raymerge.checkpoint.nouns import Checkpoint, TensorRef
from raymerge.checkpoint.row_runs import RowRuns, row_runs
from raymerge.checkpoint.steps import GatherRows
from raymerge.checkpoint.vocabulary import Vocabulary
from raymerge.errors import Problem
from raymerge.planning.nouns import AlignedRows
from raymerge.planning.stack import HEAD, is_sensory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[Any]

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|embeddings|shared)\.weight$")
_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out|output|cls\.predictions|cls\.predictions\.decoder|lm_head\.decoder|shared_head\.head)"
    r"\.(weight|bias)$"
)
_NONE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputVocabulary:
    """Ids by token, and how many rows embeddings have. Below `kept`, rows that no token has are padding that stays."""

    ids: Mapping[str, int]
    row_count: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRule:
    """The row that a token takes: `row` of the member at `member`, zeros where that is None; `force`: own rows too."""

    member: int | None
    row: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A model that takes part, with its vocabulary."""

    checkpoint: Checkpoint
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """The members' checkpoints with aligned tensors, and what became of their rows."""

    checkpoints: tuple[Checkpoint, ...]
    rows: tuple[AlignedRows, ...]
    warnings: tuple[Problem, ...] = ()


def vocabulary_tensors(checkpoint: Checkpoint) -> dict[str, TensorRef]:
    """The tensors with one row for each token, embeddings before heads."""
    found = {name: ref for name, ref in checkpoint.tensors.items() if _is_embedding(name, ref)}
    rows = {ref.spec.shape[0] for ref in found.values()}
    for name, ref in checkpoint.tensors.items():
        if _HEAD.search(name) and not is_sensory(name) and ref.spec.shape and ref.spec.shape[0] in rows:
            found.setdefault(name, ref)
    return found


def embedding_rows(checkpoint: Checkpoint) -> int | None:
    """Rows of the first embedding; None where no tensor is known as one."""
    return next((ref.spec.shape[0] for ref in vocabulary_tensors(checkpoint).values()), None)


def id_problems(member: Member) -> Iterator[Problem]:
    """Tokens whose id is past the rows of an embedding."""
    vocabulary = member.vocabulary
    for name, ref in vocabulary_tensors(member.checkpoint).items():
        rows = ref.spec.shape[0]
        past = [(token, place) for token, place in vocabulary.ids.items() if place >= rows]
        if past:
            token, place = past[0]
            yield Problem(
                subject=vocabulary.file,
                message=f"gives {len(past):,} tokens ids past the {rows:,} rows of {name}, such as {token!r} ({place})",
                remedy="use the tokenizer that was saved with the weights, or resize the embeddings "
                "(model.resize_token_embeddings) and save both",
            )
            return


def align(
    members: Sequence[Member], base: int | None, output: OutputVocabulary, rules: Mapping[str, RowRule]
) -> Alignment:
    """Give every member's embeddings and heads the output's rows. `base` is the place of the recipe's base model."""
    import numpy as np

    free = np.ones(output.row_count, bool)
    free[list(output.ids.values())] = False
    wanted = ~free
    wanted[: output.kept] = True
    table = _Table(
        members=members,
        base=base,
        output=output,
        rules={output.ids[token]: rule for token, rule in rules.items()},
        places=[_places(member.vocabulary, output) for member in members],
        free=free,
        wanted=wanted,
    )
    aligned = tuple(table.checkpoint(position) for position in range(len(members)))
    rows = tuple(table.report(position) for position in range(len(members)))
    return Alignment(checkpoints=aligned, rows=rows, warnings=tuple(_zero_warnings(rows)))


@dataclass(slots=True)
class _Table:
    """What alignments are made from; `places` are own rows by output row, -1 where the token is lacking."""

    members: Sequence[Member]
    base: int | None
    output: OutputVocabulary
    rules: Mapping[int, RowRule]
    places: Sequence[Integers]
    free: Integers
    wanted: Integers
    _made: dict[tuple[object, ...], tuple[RowRuns, tuple[int, ...]]] = field(default_factory=dict)

    def checkpoint(self, position: int) -> Checkpoint:
        checkpoint = self.members[position].checkpoint
        changed = {
            name: self._aligned(ref, self._counterparts(ref, name), position)
            for name, ref in vocabulary_tensors(checkpoint).items()
        }
        head = self._own_head(position)
        if head is not None:
            changed[head.spec.name] = head
            checkpoint = replace(checkpoint, config=untied(checkpoint.config))
        return replace(checkpoint, tensors={**checkpoint.tensors, **changed})

    def report(self, position: int) -> AlignedRows:
        """Of the model's first embedding."""
        name, embedding = next(iter(vocabulary_tensors(self.members[position].checkpoint).items()))
        have, lacking, ruled, mean = self._fates(position, self._counterparts(embedding, name))
        single = mean.sum(axis=0)
        of_base = self.base is not None and mean[self.base]
        kinds = {
            "a rule": ruled,
            "the base": lacking & of_base,
            "the only model that has it": lacking & ~of_base & (single == 1),
            "the mean of models": lacking & (single > 1),
            "zeros": lacking & (single == 0),
        }
        own = self.members[position].vocabulary.ids
        return AlignedRows(
            model=self.members[position].checkpoint.reference,
            matched=int((have & ~self.free).sum()),
            filled=tuple((kind, int(rows.sum())) for kind, rows in kinds.items() if rows.any()),
            dropped=sum(token not in self.output.ids for token in own),
            padding=int((have & self.free).sum()),
        )

    def _own_head(self, position: int) -> TensorRef | None:
        """The head of a model that ties it to its embedding, where other models have one that gives it rows."""
        checkpoint = self.members[position].checkpoint
        tensors = vocabulary_tensors(checkpoint)
        if any(HEAD.search(name) for name in tensors) or tie_word_embeddings(checkpoint.config) is False:
            return None
        others = (vocabulary_tensors(member.checkpoint) for member in self.members)
        name = next((name for each in others for name in each if HEAD.search(name)), None)
        if name is None:
            return None
        embedding = tensors[next(iter(tensors))]
        own = replace(embedding, spec=replace(embedding.spec, name=name))
        made = self._aligned(own, self._counterparts(own, name), position)
        return made if made.gather is not None else None  # as it is, it is lent like any other embedding

    def _aligned(self, own: TensorRef, refs: Sequence[TensorRef | None], position: int) -> TensorRef:
        """The model's tensor `own` in the output's rows; `refs` are every model's for the same rows."""
        key = (position, *(ref.spec.shape[0] if ref is not None else None for ref in refs))
        if key not in self._made:
            self._made[key] = self._runs(position, refs)
        runs, sources = self._made[key]
        shape = (self.output.row_count, *own.spec.shape[1:])
        if not sources and runs.run_count == 1 and runs.read_rows[0] == self.output.row_count == own.spec.shape[0]:
            return own
        columns = own.spec.shape[1] if len(own.spec.shape) == 2 else 1
        others = [ref for at in sources if (ref := refs[at]) is not None]
        gather = GatherRows(sources=(own, *others), runs=runs, columns=columns)
        return replace(own, spec=replace(own.spec, shape=shape), stored=None, steps=(gather,))

    def _counterparts(self, own: TensorRef, name: str) -> list[TensorRef | None]:
        """For each member the tensor whose rows mean the same as those of `name`; a tied head's are the embedding's."""
        return [_counterpart(member.checkpoint, name, own) for member in self.members]

    def _have(self, member: int, ref: TensorRef | None) -> Integers:
        """For each row of the output the row that the tensor has for it, or -1."""
        import numpy as np

        if ref is None:
            return np.full(self.output.row_count, _NONE, np.int64)
        count = ref.spec.shape[0]
        unused = np.ones(max(count, self.members[member].vocabulary.end), bool)
        unused[list(self.members[member].vocabulary.ids.values())] = False
        padding = np.flatnonzero(self.free[: min(self.output.kept, count)])
        padding = padding[unused[padding]]
        have = np.where(self.places[member] < count, self.places[member], _NONE)
        have[padding] = padding
        return have

    def _fates(self, position: int, refs: Sequence[TensorRef | None]) -> tuple[Integers, Integers, Integers, Integers]:
        """Which rows are the model's own, filled from models, or by a rule; and which models give the second."""
        import numpy as np

        every = np.stack([self._have(member, ref) >= 0 for member, ref in enumerate(refs)])
        have = every[position].copy()
        ruled = np.zeros_like(have)
        for place, rule in self.rules.items():
            ruled[place] = rule.force or not have[place]
        have &= ~ruled
        lacking = self.wanted & ~have & ~ruled
        gives = every & lacking
        if self.base is not None:
            others = np.arange(len(every)) != self.base
            gives[np.ix_(others, gives[self.base])] = False
        return have, lacking, ruled, gives

    def _runs(self, position: int, refs: Sequence[TensorRef | None]) -> tuple[RowRuns, tuple[int, ...]]:
        """The runs of the model's own tensor, then of those at the places that are returned."""
        import numpy as np

        have, _, ruled, gives = self._fates(position, refs)
        gives[position] = have
        terms = []
        for member, ref in enumerate(refs):
            rows = np.where(gives[member], self._have(member, ref), _NONE)
            for place, rule in self.rules.items():
                if ruled[place] and rule.member == member and ref is not None and rule.row < ref.spec.shape[0]:
                    rows[place] = rule.row
            places = np.flatnonzero(rows >= 0)
            terms.append((places, rows[places]))
        others = tuple(at for at, (places, _) in enumerate(terms) if len(places) and at != position)
        return row_runs(self.output.row_count, [terms[position], *(terms[at] for at in others)]), others


def _places(vocabulary: Vocabulary, output: OutputVocabulary) -> Integers:
    import numpy as np

    places = np.full(output.row_count, _NONE, np.int64)
    known = vocabulary.ids
    places[list(output.ids.values())] = [known.get(token, _NONE) for token in output.ids]
    return places


def _is_embedding(name: str, ref: TensorRef) -> bool:
    return _EMBEDDING.search(name) is not None and len(ref.spec.shape) == 2 and not is_sensory(name)


def _counterpart(checkpoint: Checkpoint, name: str, own: TensorRef) -> TensorRef | None:
    tensors = vocabulary_tensors(checkpoint)
    if name in tensors:
        ref = tensors[name]
    else:
        kind = _HEAD if _HEAD.search(name) else _EMBEDDING
        alike = [each for each in tensors if kind.search(each) and len(tensors[each].spec.shape) == len(own.spec.shape)]
        alike += [each for each in tensors if _EMBEDDING.search(each)]
        if not alike:
            return None
        ref = tensors[alike[0]]
    return ref if ref.spec.shape[1:] == own.spec.shape[1:] and ref.spec.dtype.is_mergeable else None


def _zero_warnings(rows: Sequence[AlignedRows]) -> Iterator[Problem]:
    for each in rows:
        zeros = dict(each.filled).get("zeros", 0)
        if zeros:
            yield Problem(
                subject=each.model,
                message=f"{zeros:,} rows of its embedding are zeros: no model has their tokens",
                remedy="tokenizer.tokens can name another row for each",
            )
