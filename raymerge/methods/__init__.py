"""Merge methods: declarations that planning reads, and formulas that run block by block."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

from raymerge.errors import Problem, UsageError
from raymerge.methods.declaration import Base, Method, Parameter, merge_method, registered_methods
from raymerge.methods.extension import MethodSource, load_entry_points, load_sources, read_source
from raymerge.methods.inputs import Block, Inputs

__all__ = [
    "Base",
    "Block",
    "Inputs",
    "Method",
    "MethodSource",
    "Parameter",
    "all_methods",
    "load_methods",
    "merge_method",
    "method",
]

_BUILT_IN = {  # the methods that each module of this package declares
    "linear": ("linear",),
    "slerp": ("slerp",),
    "nuslerp": ("nuslerp",),
    "multislerp": ("multislerp", "karcher"),
    "task_arithmetic": ("task_arithmetic",),
    "ties": ("ties",),
    "dare": ("dare_linear", "dare_ties"),
    "breadcrumbs": ("breadcrumbs", "breadcrumbs_ties"),
    "della": ("della", "della_linear"),
    "sce": ("sce",),
    "model_stock": ("model_stock",),
    "nearswap": ("nearswap",),
    "arcee_fusion": ("arcee_fusion",),
    "ram": ("ram", "ramplus_tl"),
    "passthrough": ("passthrough",),
}


def all_methods() -> dict[str, Method]:
    """Every method by name: the built-in ones, then those of installed packages and of files that were loaded."""
    for module in _BUILT_IN:
        import_module(f"{__name__}.{module}")
    load_entry_points()
    known = registered_methods()
    built_in = [name for names in _BUILT_IN.values() for name in names]
    return {name: known[name] for name in dict.fromkeys((*built_in, *known))}


def load_methods(files: Iterable[str | MethodSource]) -> None:
    """Register the methods of Python files, given by path or as text. Raises UsageError naming file and line."""
    all_methods()  # first: a file cannot take a name that is taken
    load_sources(read_source(each) if isinstance(each, str) else each for each in files)


def method(name: str) -> Method:
    """Raises UsageError for an unknown name, with the nearest known one."""
    known = all_methods()
    if name not in known:
        near = get_close_matches(name.replace("-", "_").lower(), known, n=1)
        remedy = f"Did you mean {near[0]}?" if near else f"known methods: {', '.join(known)}"
        raise UsageError(Problem(subject="merge_method", message=f"found {name}", remedy=remedy))
    return known[name]
