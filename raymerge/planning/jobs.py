"""From output tensors to jobs: what is merged, what is copied, in which type, and what the ledger says of inputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from raymerge.checkpoint.config import tie_word_embeddings
from raymerge.checkpoint.nouns import TensorRef, TensorSpec
from raymerge.dtypes import DType
from raymerge.errors import Problem
from raymerge.methods.declaration import Method
from raymerge.methods.extension import origin_of
from raymerge.planning.layouts import Layouts
from raymerge.planning.ledger import COPIED, DROPPED, MERGED, Ledger
from raymerge.planning.nouns import JobInput, ParameterValues, TensorJob
from raymerge.planning.parameters import Problems
from raymerge.planning.sites import Lane, Site
from raymerge.planning.stack import HEAD
from raymerge.recipe.nouns import OnMismatch, OnMissing, Recipe

COPY = "copy"
CONVERT = "passthrough"  # copying into another element type goes through the method of that name, without scale

# Buffers that model code computes when it is built; old checkpoints carry them, newer ones of the same model do not.
_RECOMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.masked_bias|attn\.bias|embeddings\.position_ids)$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|embeddings)\.weight$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for every tensor of a recipe."""

    method: Method
    method_sha256: str
    seed: int
    dtype: DType | None
    keep_dtype: tuple[str, ...]
    on_missing: OnMissing
    on_mismatch: OnMismatch
    tokenizer_is_set: bool

    @classmethod
    def of(cls, recipe: Recipe, method: Method, seed: int) -> Rules:
        return cls(
            method=method,
            method_sha256=origin_of(method).sha256 or "",
            seed=seed,
            dtype=recipe.out_dtype or recipe.dtype,
            keep_dtype=recipe.keep_dtype,
            on_missing=recipe.on_missing,
            on_mismatch=recipe.on_mismatch,
            tokenizer_is_set=recipe.tokenizer_source is not None or recipe.tokenizer is not None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A lane's tensor for one site; `position` is the lane's among the group's inputs, -1 for the base."""

    lane: Lane
    name: str
    position: int
    ref: TensorRef


@dataclass(slots=True)
class JobMaker:
    """Turns sites into jobs, collecting ledger and problems."""

    rules: Rules
    ledger: Ledger
    problems: Problems
    layouts: Layouts
    rounded_count: int = 0
    rounded_example: str = ""

    def job(self, site: Site) -> TensorJob | None:
        """The job of one site; None where the tensor is dropped (the ledger says so) or cannot be made (a problem)."""
        found = self._find(site)
        if not all(each.ref.spec.dtype.is_mergeable for each in found):
            return self._copy_codes(site, found)
        lacking = len(site.group.lanes) - len(found)
        if lacking:
            found = self._lend_tied(site, found)
            lacking = len(site.group.lanes) - len(found)
        if lacking:
            return self._partial(site, found)
        if len({each.ref.spec.shape for each in found}) > 1:
            return self._mismatched(site, found)
        return self._merge(site, found)

    def _find(self, site: Site) -> list[_Found]:
        return [
            _Found(lane=lane, name=name, position=position, ref=lane.checkpoint.tensors[name])
            for lane, name, position in _lanes(site)
            if name in lane.checkpoint.tensors
        ]

    def _merge(self, site: Site, found: list[_Found]) -> TensorJob:
        method = self.rules.method
        table = site.group.table
        shared = table.shared(site.output, site.t)
        each = sorted((one for one in found if one.position >= 0), key=lambda one: one.position)
        base = next((found_one.ref for found_one in found if found_one.position < 0), None)
        inputs = tuple(JobInput(ref=one.ref, parameters=table.each(one.position, one.name, site.t)) for one in each)
        if method.name == CONVERT and inputs[0].parameters.get("scale") is None:
            return self._copy(site, each[0], "passthrough")
        output = self._output(site, found[0])
        for one in found:
            self.ledger.record(one.lane.label, one.name, MERGED, f"merged by {method.name}")
        self._check_values(site, shared, [each.parameters for each in inputs])
        return TensorJob(
            output=output,
            method=method.name,
            inputs=inputs,
            base=base,
            parameters=shared,
            seed=self.rules.seed if method.random else 0,
            slots=_slots(site) if method.random else (),
            method_sha256=self.rules.method_sha256,
        )

    def _check_values(self, site: Site, shared: ParameterValues, each: list[ParameterValues]) -> None:
        """Ask the method whether its values fit together; not where one of them is wrong by itself."""
        method = self.rules.method
        is_whole = not any(
            values[parameter.name] is None and parameter.default is not None
            for parameter in method.parameters
            for values in (each if parameter.per_input else [shared])
        )
        problem = method.check(shared, each) if method.check is not None and is_whole else None
        if problem:
            self.problems.add_for_tensor((method.name, problem), Problem(subject=site.output, message=problem))

    def _copy(self, site: Site, taken: _Found, rule: str, others: list[_Found] | None = None) -> TensorJob:
        """The taken tensor alone, converted where the output's type differs; others are dropped by the same rule."""
        output = self._output(site, taken)
        self.ledger.record(taken.lane.label, taken.name, COPIED, rule)
        for other in others or []:
            if other is not taken:
                self.ledger.record(other.lane.label, other.name, DROPPED, f"{rule}, from {taken.lane.label}")
        unchanged = output.dtype is taken.ref.spec.dtype and not taken.ref.steps
        parameters: Mapping[str, None] = {} if unchanged else {"scale": None}
        return TensorJob(
            output=output,
            method=COPY if unchanged else CONVERT,
            inputs=(JobInput(ref=taken.ref, parameters=parameters),),
        )

    def _copy_codes(self, site: Site, found: list[_Found]) -> TensorJob | None:
        coded = next((one for one in found if one.ref.spec.dtype.value.startswith(("F8", "F4", "F6", "C64"))), None)
        if coded is not None:
            dtype = coded.ref.spec.dtype.value
            self.problems.add_for_tensor(
                (coded.lane.label, "coded"),
                Problem(
                    subject=f"{coded.lane.label}: {coded.name}",
                    message=f"has element type {dtype}: quantized codes are not merged",
                    remedy="use a bfloat16, float16 or float32 copy of the model",
                ),
            )
            return None
        is_buffer = _RECOMPUTED.search(site.output) is not None
        if len({one.ref.spec.dtype.is_mergeable for one in found}) > 1 and not is_buffer:
            return self._unlike_types(site, found)
        different = len({(one.ref.spec.dtype, one.ref.spec.shape) for one in found}) > 1
        rule = "integers and flags are not merged" + (" (inputs differ in type or shape)" if different else "")
        return self._copy(site, found[0], rule, found)

    def _unlike_types(self, site: Site, found: list[_Found]) -> TensorJob | None:
        """Numbers in one input, integers in another: codes whose scales lie elsewhere, or another model."""
        base = self._base_of(site, found)
        if self.rules.on_mismatch is OnMismatch.BASE and base is not None:
            return self._copy(site, base, "on_mismatch: base", found)
        first = found[0]
        other = next(one for one in found if one.ref.spec.dtype.is_mergeable is not first.ref.spec.dtype.is_mergeable)
        for one in found:
            self.ledger.record(one.lane.label, one.name, DROPPED, "element types cannot be merged")
        types = f"{other.lane.label} has element type {other.ref.spec.dtype.value}, {first.lane.label} "
        self.problems.add_for_tensor(
            (other.lane.label, "element types"),
            Problem(
                subject=site.output,
                message=f"{types}{first.ref.spec.dtype.value}: integers and numbers do not merge",
                remedy="use a bfloat16, float16 or float32 copy of the model, or set on_mismatch: base",
            ),
        )
        return None

    def _partial(self, site: Site, found: list[_Found]) -> TensorJob | None:
        """Some lanes lack the tensor: what the method, the kind of tensor or `on_missing` say."""
        if _RECOMPUTED.search(site.output):
            for one in found:
                self.ledger.record(one.lane.label, one.name, DROPPED, "buffer that model code recomputes")
            return None
        base = self._base_of(site, found)
        if base is not None and self.layouts.is_beside(site.output, _lacking(site, found)):
            return self._copy(site, base, "beside the language model, which is all that other inputs have", found)
        if self.rules.method.passes_lone_tensor_through and len(found) == 1:
            return self._copy(site, found[0], "only one input has it")
        if self.rules.on_missing is OnMissing.SKIP:
            for one in found:
                self.ledger.record(one.lane.label, one.name, DROPPED, "on_missing: skip")
            return None
        if self.rules.on_missing is OnMissing.BASE and base is not None:
            return self._copy(site, base, "on_missing: base", found)
        self._complain_missing(site, found)
        return None

    def _complain_missing(self, site: Site, found: list[_Found]) -> None:
        lacking = _lacking(site, found)
        for one in found:  # named in a problem, so not silent
            self.ledger.record(one.lane.label, one.name, DROPPED, "missing from other inputs")
        base = " base (the base has it)," if self._base_of(site, found) is not None else ""
        self.problems.add(
            Problem(
                subject=site.output,
                message=f"{', '.join(lacking)} lacks it, {', '.join(one.lane.label for one in found)} has it",
                remedy=f"set on_missing:{base} skip (leave it out), or change the models",
            )
        )

    def _mismatched(self, site: Site, found: list[_Found]) -> TensorJob | None:
        base = self._base_of(site, found)
        if self.rules.on_mismatch is OnMismatch.BASE and base is not None:
            return self._copy(site, base, "on_mismatch: base", found)
        first = found[0]
        other = next(one for one in found if one.ref.spec.shape != first.ref.spec.shape)
        for one in found:
            self.ledger.record(one.lane.label, one.name, DROPPED, "shapes differ")
        subject = f"{site.output}"
        message = f"{other.lane.label} has shape {other.ref.spec.shape}, {first.lane.label} {first.ref.spec.shape}"
        if _is_vocabulary(site.output, first.ref.spec.shape, other.ref.spec.shape):
            remedy = "the vocabularies differ: set tokenizer_source: base or union to align them"
        else:
            remedy = "set on_mismatch: base, or drop the model"
        key = (other.lane.label, f"shape {remedy}")
        self.problems.add_for_tensor(key, Problem(subject=subject, message=message, remedy=remedy))
        return None

    def _base_of(self, site: Site, found: list[_Found]) -> _Found | None:
        """The base's tensor, for rules that fall back on it; where the method has no base, the first input's."""
        leader = site.group.lanes[0]
        return next((one for one in found if one.lane is leader), None)

    def _lend_tied(self, site: Site, found: list[_Found]) -> list[_Found]:
        """Where only some inputs keep a head, those that tie it to their embedding lend the embedding."""
        if not HEAD.search(site.output):
            return found
        shape = found[0].ref.spec.shape if found else None
        by_lane = {id(one.lane): one for one in found}
        lent = []
        for lane, _, position in _lanes(site):
            one = by_lane.get(id(lane))
            if one is None and tie_word_embeddings(lane.checkpoint.config) is not False:
                one = next(_embeddings(lane, position, shape), None)
            if one is not None:
                lent.append(one)
        return lent

    def _output(self, site: Site, leader: _Found) -> TensorSpec:
        stored = leader.ref.spec
        dtype = stored.dtype
        if self.rules.dtype is not None and dtype.is_mergeable and not self._is_kept(site.output):
            dtype = self.rules.dtype
            if dtype.bits < stored.dtype.bits:
                self.rounded_count += 1
                self.rounded_example = self.rounded_example or site.output
        return TensorSpec(name=site.output, dtype=dtype, shape=stored.shape)

    def _is_kept(self, name: str) -> bool:
        return any(is_kept(name, pattern) for pattern in self.rules.keep_dtype)


def is_kept(name: str, pattern: str) -> bool:
    """Whether a pattern of `keep_dtype` means a tensor."""
    return fnmatchcase(name, pattern) or pattern in name


def is_head(name: str) -> bool:
    """Whether a tensor is the output embedding that some models share with their input embedding."""
    return HEAD.search(name) is not None


def is_embedding(name: str) -> bool:
    """Whether a tensor is called as the input embeddings of language models are."""
    return _EMBEDDING.search(name) is not None


def _lanes(site: Site) -> Iterator[tuple[Lane, str, int]]:
    """Every lane of a site's group, its tensor's name there and its place among the inputs; the leader first."""
    group = site.group
    inputs = [(lane, name, i) for i, (lane, name) in enumerate(zip(group.inputs, site.input_names, strict=True))]
    lanes = inputs if group.base is None else [(group.base, site.base_name, -1), *inputs]
    yield from (each for each in lanes if each[0] is group.leader)
    yield from (each for each in lanes if each[0] is not group.leader)


def _lacking(site: Site, found: Iterable[_Found]) -> list[str]:
    having = {id(one.lane) for one in found}
    return [lane.label for lane in site.group.lanes if id(lane) not in having]


def _slots(site: Site) -> tuple[int, ...]:
    return tuple(range(len(site.group.inputs)))


def _embeddings(lane: Lane, position: int, shape: tuple[int, ...] | None) -> Iterator[_Found]:
    for name, ref in lane.checkpoint.tensors.items():
        if _EMBEDDING.search(name) and shape in (None, ref.spec.shape):
            yield _Found(lane=lane, name=name, position=position, ref=ref)


def _is_vocabulary(name: str, first: tuple[int, ...], other: tuple[int, ...]) -> bool:
    vocabulary_sized = HEAD.search(name) or _EMBEDDING.search(name)
    return bool(vocabulary_sized) and len(first) == len(other) and first[1:] == other[1:]
