"""Adding a PEFT LoRA adapter to a model: every tensor of the adapter finds the tensor it changes, or all are named.

The result is a checkpoint whose tensors carry the addition as a step; nothing is computed here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from raymerge.checkpoint.adapter_config import MERGE_FIRST, AdapterSettings, adapter_settings
from raymerge.checkpoint.nouns import Checkpoint, Helper, TensorRef
from raymerge.checkpoint.steps import AddAdapter
from raymerge.errors import CheckpointError, Problem

_WRAPPERS = re.compile(r"^base_model\.model\.")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.weight)?")
_FOREIGN = re.compile(r"(?:^|\.)(?:lora_|token_adapter\.|original_module\.|trainable_tokens)")
_NAMED_AT_MOST = 5

Rename = Callable[[str], str]


@dataclass(slots=True)
class _Pair:
    """The factors of one module; `is_embedding` ones are stored for a transposed weight."""

    is_embedding: bool
    names: dict[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return set(self.names) == {"A", "B"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """An adapter's tensors: factors by module, whole replacements by the tensor they replace, and what is neither."""

    pairs: Mapping[str, _Pair]
    replacements: Mapping[str, str]
    foreign: tuple[str, ...]


def with_adapter(base: Checkpoint, adapter: Checkpoint, *, reference: str) -> Checkpoint:
    """The model `base` with `adapter` added to it, named `reference`.

    Raises CheckpointError: the adapter is of a kind that is not a plain addition, was made for another base, or holds
    tensors that match none of the base.
    """
    settings = adapter_settings(adapter.config, display=adapter.reference)
    parts = _parts(adapter)
    rename = _rename(base, parts)
    problems = [*_unmatched(base, adapter, parts, rename)]
    if problems:
        raise CheckpointError(*problems)
    tensors, helpers = dict(base.tensors), dict(base.helpers)
    for target, name in parts.replacements.items():
        own = rename(target)
        problems += _mismatch(base.tensors[own], adapter, name)
        tensors[own] = _named(adapter.tensors[name], own)
        helpers[name] = Helper(serves=own, rule="the adapter's tensor in place of the base's")
    turned = _turned(parts, base, adapter, rename)
    for module, pair in parts.pairs.items():
        own = rename(f"{module}.weight")
        try:
            tensors[own] = _add(tensors[own], module, pair, adapter=adapter, settings=settings, turned=turned)
        except _MisfitError as misfit:
            problems.append(misfit.problem)
        for name in pair.names.values():
            helpers[name] = Helper(serves=own, rule="factors of the adapter, added to the base")
    if problems:
        raise CheckpointError(*problems)
    return replace(
        base,
        reference=reference,
        tensors=tensors,
        files=tuple(dict.fromkeys((*base.files, *adapter.files))),
        notes=(*base.notes, *adapter.notes, *settings.notes),
        adapter=adapter,
        helpers=helpers,
    )


class _MisfitError(Exception):
    """Factors that do not fit the tensor they would change."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def _parts(adapter: Checkpoint) -> _Parts:
    pairs: dict[str, _Pair] = {}
    replacements: dict[str, str] = {}
    foreign = []
    for name in adapter.tensors:
        plain = _WRAPPERS.sub("", name)
        factor = _FACTOR.fullmatch(plain)
        if factor is not None:
            pair = pairs.setdefault(factor["module"], _Pair(is_embedding=factor["kind"] is not None))
            pair.names[factor["side"]] = name
        elif _FOREIGN.search(plain):
            foreign.append(name)
        else:
            replacements[plain.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = name
    foreign += [name for pair in pairs.values() if not pair.is_whole for name in pair.names.values()]
    whole = {module: pair for module, pair in pairs.items() if pair.is_whole}
    return _Parts(pairs=whole, replacements=replacements, foreign=tuple(foreign))


def _targets(parts: _Parts) -> tuple[str, ...]:
    return (*(f"{module}.weight" for module in parts.pairs), *parts.replacements)


def _rename(base: Checkpoint, parts: _Parts) -> Rename:
    """How the adapter's names become the base's, for all of them alike: the way under which most of them match.

    Bodies and models with a head differ by a first part ("model.", "transformer."), which either side may lack.
    """
    targets = _targets(parts)

    def matches(rename: Rename) -> int:
        return sum(rename(target) in base.tensors for target in targets)

    ways: list[Rename] = [lambda name: name]
    ways += [_dropper(head) for head in dict.fromkeys(name.partition(".")[0] for name in targets)]
    ways += [_adder(head) for head in dict.fromkeys(name.partition(".")[0] for name in base.tensors)]
    return max(ways, key=matches)  # the first of equals: names as they are


def _dropper(head: str) -> Rename:
    return lambda name: name.removeprefix(f"{head}.")


def _adder(head: str) -> Rename:
    return lambda name: f"{head}.{name}"


def _unmatched(base: Checkpoint, adapter: Checkpoint, parts: _Parts, rename: Rename) -> Iterator[Problem]:
    targets = _targets(parts)
    if parts.foreign:
        yield Problem(
            subject=adapter.reference,
            message=f"holds {_some(parts.foreign)}, which is no part of a plain LoRA",
            remedy=MERGE_FIRST,
        )
    if not targets and not parts.foreign:
        yield Problem(subject=adapter.reference, message="holds no tensor", remedy="download it again")
    lacking = [target for target in targets if rename(target) not in base.tensors]
    if lacking and len(lacking) == len(targets):
        yield Problem(
            subject=adapter.reference,
            message=f"matches no tensor of {base.reference}: it changes {_some(lacking)}",
            remedy=f"name the model it was made for{_origin(adapter)}",
        )
    elif lacking:
        tied = " (the base ties its head to its embedding)" if any("lm_head" in name for name in lacking) else ""
        yield Problem(
            subject=adapter.reference,
            message=f"{len(lacking)} of its {len(targets)} targets are not in {base.reference}: {_some(lacking)}{tied}",
            remedy=f"name the model it was made for{_origin(adapter)}",
        )


def _origin(adapter: Checkpoint) -> str:
    name = adapter.config.get("base_model_name_or_path")
    return f", {name}" if isinstance(name, str) and name else ""


def _mismatch(own: TensorRef, adapter: Checkpoint, name: str) -> Iterator[Problem]:
    found, expected = adapter.tensors[name].spec, own.spec
    if found.shape == expected.shape and found.dtype.is_mergeable == expected.dtype.is_mergeable:
        return
    vocabulary = len(found.shape) == len(expected.shape) == 2 and found.shape[1] == expected.shape[1]
    message = f"has shape {found.shape}, {expected.name} of the base {expected.shape}"
    yield Problem(
        subject=f"{adapter.reference}: {name}",
        message=f"{message}: tokens were added" if vocabulary else message,
        remedy=MERGE_FIRST if vocabulary else f"name the model it was made for{_origin(adapter)}",
    )


def _add(
    own: TensorRef, module: str, pair: _Pair, *, adapter: Checkpoint, settings: AdapterSettings, turned: bool | None
) -> TensorRef:
    down, up = adapter.tensors[pair.names["A"]], adapter.tensors[pair.names["B"]]
    _check_factors((own, down, up), f"{adapter.reference}: {module}", settings.rank_of(module))
    inputs, outputs = down.spec.shape[1], up.spec.shape[0]
    transposed = own.spec.shape == (inputs, outputs)
    if pair.is_embedding:
        fits = transposed
    else:
        fits = transposed or own.spec.shape == (outputs, inputs)
        if inputs == outputs:
            if turned is None:
                raise _MisfitError(_undecided(own, adapter, module))
            transposed = turned
    if not fits:
        product = f"({inputs}, {outputs})" if pair.is_embedding else f"({outputs}, {inputs})"
        raise _MisfitError(
            Problem(
                subject=f"{adapter.reference}: {module}",
                message=f"its product has shape {product}, {own.spec.name} of the base {own.spec.shape}",
                remedy=f"name the model it was made for{_origin(adapter)}",
            )
        )
    step = AddAdapter(down=down, up=up, scale=settings.scale_of(module), transposed=transposed)
    return replace(own, steps=(*own.steps, step))


def _check_factors(refs: tuple[TensorRef, TensorRef, TensorRef], subject: str, rank: int) -> None:
    own, down, up = (ref.spec for ref in refs)
    codes = [spec for spec in (own, down, up) if not spec.dtype.is_mergeable]
    if codes:
        message = f"{codes[0].name} holds {codes[0].dtype.value} elements, expected floats"
        raise _MisfitError(Problem(subject=subject, message=message))
    if any(len(spec.shape) != 2 for spec in (own, down, up)):
        message = f"its factors have the shapes {down.shape} and {up.shape}, {own.name} {own.shape}; expected matrices"
        raise _MisfitError(Problem(subject=subject, message=message, remedy=MERGE_FIRST))
    if (down.shape[0], up.shape[1]) != (rank, rank):
        message = f"its factors have the ranks {down.shape[0]} and {up.shape[1]}, adapter_config.json says {rank}"
        raise _MisfitError(Problem(subject=subject, message=message, remedy="download the adapter again"))


def _undecided(own: TensorRef, adapter: Checkpoint, module: str) -> Problem:
    return Problem(
        subject=f"{adapter.reference}: {module}",
        message=f"{own.spec.name} of the base is square, and the adapter changes both plain and transposed weights",
        remedy=MERGE_FIRST,
    )


def _turned(parts: _Parts, base: Checkpoint, adapter: Checkpoint, rename: Rename) -> bool | None:
    """Whether square weights are stored (inputs, outputs), as the others show; None where those differ.

    PEFT's `fan_in_fan_out` tells for the last module alone where a model has both kinds (GPT-2 and its head).
    """
    seen: dict[bool, bool] = defaultdict(bool)
    for module, pair in parts.pairs.items():
        shape = base.tensors[rename(f"{module}.weight")].spec.shape
        factors = [adapter.tensors[pair.names[side]].spec.shape for side in "AB"]
        if pair.is_embedding or any(len(each) != 2 for each in factors) or factors[0][1] == factors[1][0]:
            continue
        seen[shape == (factors[0][1], factors[1][0])] = True
    if len(seen) == 2:
        return None
    return next(iter(seen), bool(adapter.config.get("fan_in_fan_out")))


def _named(ref: TensorRef, name: str) -> TensorRef:
    return replace(ref, spec=replace(ref.spec, name=name))


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = len(shown) - _NAMED_AT_MOST
    return ", ".join(shown[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
