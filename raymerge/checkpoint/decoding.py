"""A quantized checkpoint while its tensors are sorted: which are weights, which help to decode them, which misfit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint, Helper, TensorRef, TensorSpec
from raymerge.checkpoint.steps import Step
from raymerge.dtypes import DType, recipe_dtype_names
from raymerge.errors import Problem

_DTYPE_KEYS = ("dtype", "torch_dtype")
_UNFIT = "download or convert the model again"


@dataclass(slots=True)
class Decoding:
    """`dtype` is the element type that the config gives the model's values; decoded tensors take it."""

    checkpoint: Checkpoint
    settings: Mapping[str, Any]
    dtype: DType
    tensors: dict[str, TensorRef]
    helpers: dict[str, Helper] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    decoded_count: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Decoding:
        return cls(
            checkpoint=checkpoint,
            settings=settings,
            dtype=_dtype(checkpoint.config),
            tensors=dict(checkpoint.tensors),
        )

    def take(self, name: str, *, serves: str, rule: str) -> TensorRef:
        """A stored tensor that helps to decode `serves`, out of the list of tensors."""
        self.helpers[name] = Helper(serves=serves, rule=rule)
        return self.tensors.pop(name)

    def drop(self, name: str, *, beside: str, rule: str) -> None:
        """Leave out a stored tensor that says nothing about weights."""
        self.helpers[name] = Helper(serves=beside, rule=rule, is_dropped=True)
        self.tensors.pop(name)

    def put(self, name: str, stored: TensorRef, shape: tuple[int, ...], step: Step) -> None:
        """The tensor `name` as decoded from `stored`, in the place of that one."""
        spec = TensorSpec(name=name, dtype=self.dtype, shape=shape)
        made = replace(stored, spec=spec, stored=stored.spec, steps=(step,))
        own = stored.spec.name
        if name != own:
            self.tensors = {name if each == own else each: ref for each, ref in self.tensors.items()}
        self.tensors[name] = made
        self.decoded_count += 1

    def complain(self, name: str, message: str, remedy: str = _UNFIT) -> None:
        self.problems.append(Problem(subject=f"{self.checkpoint.reference}: {name}", message=message, remedy=remedy))

    def result(self, config: Mapping[str, Any]) -> Checkpoint:
        method = self.settings.get("quant_method")
        note = (
            f"{self.decoded_count} weights of {self.checkpoint.reference} are decoded from {method} while they are read"
        )
        return replace(
            self.checkpoint,
            config=config,
            tensors=self.tensors,
            helpers={**self.checkpoint.helpers, **self.helpers},
            notes=(*self.checkpoint.notes, note),
        )


def _dtype(config: Mapping[str, Any]) -> DType:
    """The config's element type, the text model's where the top level has none; bfloat16 where it names no float."""
    sections = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    named = [str(section[key]).removeprefix("torch.") for section in sections for key in _DTYPE_KEYS if key in section]
    return next((DType.from_recipe_name(name) for name in named if name in recipe_dtype_names()), DType.BF16)
