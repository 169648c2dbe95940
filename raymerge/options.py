"""How a merge runs: the options of the Python interface and the command line, checked once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from raymerge.errors import Problem, UsageError
from raymerge.planning.build import PlanOptions
from raymerge.planning.memory import DEFAULT_TASK_MEMORY_BYTES, MemoryRules
from raymerge.recipe.suggest import did_you_mean
from raymerge.sizes import parse_size
from raymerge.storage import store_for

Executor = Literal["ray", "inline"]

# Ray sets no label for it: the files in cluster/ do.
SPOT_LABEL = "market-type=spot"

_OF_RAY = ("address", "task_gpus", "max_tasks", "prefer_nodes")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?|torch:cpu", re.ASCII)
_LABEL = re.compile(r"[^=\s]+=[^=\s]+")


class MergeKeywords(TypedDict, total=False):
    """The keywords of `raymerge.merge` and `raymerge.plan`; see MergeOptions."""

    executor: Executor
    random_seed: int
    out_shard_size: int | str
    device: str
    address: str | None
    task_cpus: int | None
    task_gpus: float | None
    max_tasks: int | None
    prefer_nodes: tuple[str, ...]
    task_memory: int | str
    overwrite: bool
    private: bool
    nan: Literal["error", "warn"]
    copy_tokenizer: bool
    write_model_card: bool
    keep_inputs: bool
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """Options of a run; the plan's digest depends on `random_seed` and `out_shard_size` alone.

    `task_cpus` is the number of threads that merge in one task (by default 1 on Ray, every core inline); `task_memory`
    caps one task's memory above its worker's baseline; sizes are bytes or text such as "2GB". `nan` says whether
    a result that is not finite fails the run or is only reported. `private` is who may see an output on the hub.
    `methods` are Python files of merge methods.

    On Ray: `task_gpus` is the share of a GPU that a task asks for (by default 1 where `device` is one), `max_tasks`
    bounds the tasks under way, and tasks run first on nodes with the labels `prefer_nodes` ("KEY=VALUE").
    """

    executor: Executor = "ray"
    random_seed: int = 0
    out_shard_size: int | str = "2GB"
    device: str = "cpu"
    address: str | None = None
    task_cpus: int | None = None
    task_gpus: float | None = None
    max_tasks: int | None = None
    prefer_nodes: tuple[str, ...] = (SPOT_LABEL,)
    task_memory: int | str = DEFAULT_TASK_MEMORY_BYTES
    overwrite: bool = False
    private: bool = True
    nan: Literal["error", "warn"] = "error"
    copy_tokenizer: bool = True
    write_model_card: bool = True
    keep_inputs: bool = False
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.methods, str):
            raise UsageError(Problem(subject="methods", message="found text", remedy=f"write ({self.methods!r},)"))
        _check_choice("executor", self.executor, ("ray", "inline"))
        _check_choice("nan", self.nan, ("error", "warn"))
        if not _is_whole(self.random_seed):
            message = f"found {self.random_seed!r}, expected a whole number"
            raise UsageError(Problem(subject="random_seed", message=message))
        if self.task_cpus is not None and not (_is_whole(self.task_cpus) and self.task_cpus >= 1):
            message = f"found {self.task_cpus!r}, expected a whole number, at least 1"
            raise UsageError(Problem(subject="task_cpus", message=message))
        self._check_placement()
        if not _DEVICE.fullmatch(str(self.device)):
            raise UsageError(Problem(subject="device", message=f"found {self.device!r}, expected cpu, cuda or cuda:0"))

    def _check_placement(self) -> None:
        if self.max_tasks is not None and not (_is_whole(self.max_tasks) and self.max_tasks >= 1):
            message = f"found {self.max_tasks!r}, expected a whole number, at least 1"
            raise UsageError(Problem(subject="max_tasks", message=message))
        if self.task_gpus is not None and not (_is_number(self.task_gpus) and self.task_gpus >= 0):
            message = f"found {self.task_gpus!r}, expected a number, at least 0"
            raise UsageError(Problem(subject="task_gpus", message=message))
        labels = (self.prefer_nodes,) if isinstance(self.prefer_nodes, str) else self.prefer_nodes
        wrong = [label for label in labels if not _LABEL.fullmatch(label)]
        if wrong or isinstance(self.prefer_nodes, str):
            message = f"found {', '.join(wrong or labels)}, expected labels KEY=VALUE, in a tuple"
            raise UsageError(Problem(subject="prefer_nodes", message=message, remedy=f"as in {SPOT_LABEL}"))
        self._check_executor()

    def _check_executor(self) -> None:
        """Options that bear on Ray alone would be ignored without it."""
        if self.executor == "inline":
            plain = {each.name: each.default for each in fields(self) if each.name in _OF_RAY}
            given = [name for name in _OF_RAY if getattr(self, name) != plain[name]]
            message, remedy = "bears on Ray alone, the executor is inline", "leave out one of the two"
            if given:
                raise UsageError(*(Problem(subject=name, message=message, remedy=remedy) for name in given))

    @property
    def gpus(self) -> float:
        """The GPUs that one task asks for."""
        if self.task_gpus is not None:
            return self.task_gpus
        return 1 if self.device.startswith("cuda") else 0

    @property
    def labels(self) -> dict[str, str]:
        """The labels of nodes that tasks prefer."""
        pairs = (label.partition("=") for label in self.prefer_nodes)
        return {key: value for key, _, value in pairs}

    @property
    def threads(self) -> int:
        if self.task_cpus is not None:
            return self.task_cpus
        return available_cpus() if self.executor == "inline" else 1

    def memory(self, out: str | None) -> MemoryRules:
        """The memory rules of tasks that write to folder `out`."""
        shard_bytes = parse_size(self.out_shard_size, subject="out_shard_size")
        return MemoryRules(
            budget_bytes=parse_size(self.task_memory, subject="task_memory"),
            threads=self.threads,
            upload_bytes=store_for(out).buffered_bytes(shard_bytes) if out is not None else 0,
        )

    def planning(self, out: str | None) -> PlanOptions:
        return PlanOptions(
            random_seed=self.random_seed,
            shard_bytes=parse_size(self.out_shard_size, subject="out_shard_size"),
            memory=self.memory(out),
            copy_tokenizer=self.copy_tokenizer,
            device=self.device,
        )


class UnknownOptionError(UsageError, TypeError):
    """A keyword that no merge has; a TypeError too, as for any other function."""


def merge_options(given: Mapping[str, Any]) -> MergeOptions:
    """The options of these keywords. Raises UsageError for values that cannot be, and for names that are none."""
    names = [each.name for each in fields(MergeOptions)]
    unknown = [name for name in given if name not in names]
    if unknown:
        known = f"expected {', '.join(names)}"
        raise UnknownOptionError(
            *(
                Problem(subject=name, message="is no option", remedy=did_you_mean(name, names) or known)
                for name in unknown
            )
        )
    return MergeOptions(**given)


def available_cpus() -> int:
    """Cores this process may run on, which a container may limit below what the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_choice(subject: str, found: str, choices: tuple[str, ...]) -> None:
    if found not in choices:
        expected = " or ".join(choices)
        raise UsageError(Problem(subject=subject, message=f"found {found!r}, expected {expected}"))
