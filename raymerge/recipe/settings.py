"""What a setting says for one tensor at one place of the layer stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from raymerge.recipe.nouns import Condition, Scalar, Setting, Settings

# A list with one entry per layer is read at t = i/(n-1), and i/(n-1)*(n-1) misses i by an ulp for some i and n: without
# this slack entry i-1 would be taken. 1e-9 is far above that error and far below one entry of any list.
_SLACK = 1e-9


def evaluate(setting: Setting, *, tensor_name: str, t: float) -> Scalar | None:
    """The value for `tensor_name` at `t`, 0 at the first layer and 1 at the last; None where it is not set here.

    The first condition whose filter matches decides, even when its own value is an empty list. Lists of numbers are
    interpolated linearly and give a float, lists of text or booleans give the entry floor(t * (length - 1)).
    """
    value = setting.value
    if not isinstance(value, tuple):
        return value
    if value and isinstance(value[0], Condition):
        for condition in value:
            if _matches(condition.filter, tensor_name):
                return _at(condition.value, t)
        return None
    return _at(cast("tuple[Scalar, ...]", value), t)


def lookup(levels: Sequence[Settings], name: str, *, tensor_name: str, t: float) -> Scalar | None:
    """The value of parameter `name` at the first level that yields one; levels go from the nearest to the farthest."""
    for settings in levels:
        setting = settings.get(name)
        if setting is not None:
            value = evaluate(setting, tensor_name=tensor_name, t=t)
            if value is not None:
                return value
    return None


def varies_over_layers(setting: Setting) -> bool:
    """Whether it is a gradient, for some tensors at least."""
    if not isinstance(setting.value, tuple):
        return False
    lists = [each.value if isinstance(each, Condition) else setting.value for each in setting.value]
    return any(isinstance(each, tuple) and len(set(each)) > 1 for each in lists)


def filters(*levels: Settings) -> tuple[str, ...]:
    """Every substring that conditions in `levels` ask for, in order of appearance, each once.

    What `lookup` answers depends on a tensor's name only through which of these it contains: values may be cached by
    `(matching(filters(*levels), tensor_name), t)`.
    """
    found: dict[str, None] = {}
    for settings in levels:
        for setting in settings.values():
            if isinstance(setting.value, tuple):
                for entry in setting.value:
                    if isinstance(entry, Condition) and entry.filter is not None and entry.filter != "*":
                        found[entry.filter] = None
    return tuple(found)


def matching(filters: Sequence[str], tensor_name: str) -> tuple[str, ...]:
    """Those of `filters` that occur in `tensor_name`."""
    return tuple(each for each in filters if each in tensor_name)


def _matches(filter: str | None, tensor_name: str) -> bool:
    return filter is None or filter == "*" or filter in tensor_name


def _at(value: Scalar | tuple[Scalar, ...], t: float) -> Scalar | None:
    if not isinstance(value, tuple):
        return value
    if not value:
        return None
    last = len(value) - 1
    place = t * last
    index = min(int(place + _SLACK), last)
    entry = value[index]
    if isinstance(entry, (bool, str)):
        return entry
    fraction = place - index
    if index == last or fraction <= _SLACK:
        return float(entry)
    following = float(value[index + 1])
    return entry + fraction * (following - entry)
