"""Which failures on Ray mean "run it again", how often, and which are the task's own."""

from __future__ import annotations

from dataclasses import dataclass

from ray import exceptions

from raymerge.errors import ExecutionError, Problem, RaymergeError, TransientStorageError
from raymerge.events import RetryCause
from raymerge.execute.task import STORAGE_RETRIES

MEMORY_RETRIES = 3
SET_UP_RETRIES = 3
# Ray's own faults (a failed RPC, a system error) pass or repeat for ever.
RAY_RETRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A failure that another attempt may survive. `limit` counts retries of a task and `budget`; None is unlimited."""

    cause: RetryCause
    limit: int | None
    detail: str

    @property
    def budget(self) -> str:
        """Causes that share a count: a worker that died and one that was killed for memory may be the same story."""
        return "memory" if self.wants_memory else self.cause

    @property
    def wants_memory(self) -> bool:
        return self.cause in ("worker died", "out of memory")


# The first match decides.
_RETRIED: tuple[tuple[tuple[type[BaseException], ...], RetryCause, int | None], ...] = (
    ((TransientStorageError,), "storage", STORAGE_RETRIES),
    ((exceptions.NodeDiedError, exceptions.LocalRayletDiedError, exceptions.ObjectLostError), "node lost", None),
    ((exceptions.OutOfMemoryError,), "out of memory", MEMORY_RETRIES),
    ((exceptions.WorkerCrashedError,), "worker died", MEMORY_RETRIES),
    ((exceptions.RuntimeEnvSetupError,), "set-up", SET_UP_RETRIES),
    ((exceptions.RaySystemError, exceptions.RpcError), "ray", RAY_RETRIES),
)

# Where Ray's own text says less than this.
_DETAILS = {"worker died": "the worker process crashed or was killed"}


def cause_of(error: BaseException) -> BaseException:
    """What the task raised, where Ray wrapped it."""
    return error.cause if isinstance(error, exceptions.RayTaskError) else error


def classify(error: BaseException) -> Fault | None:
    """The fault behind a failed attempt, or None where the failure is the task's own and would only repeat."""
    cause = cause_of(error)
    for types, name, limit in _RETRIED:
        if isinstance(cause, types):
            return Fault(cause=name, limit=limit, detail=_DETAILS.get(name) or _first_line(cause))
    return None


def node_lost(detail: str) -> Fault:
    """A failure that is seen to be the node's."""
    return Fault(cause="node lost", limit=None, detail=detail)


def final_error(task_name: str, node: str, error: BaseException) -> RaymergeError:
    """What to raise for a failure that is not tried again; a `RaymergeError` of the task is returned as it is."""
    cause = cause_of(error)
    if isinstance(cause, RaymergeError):
        return cause
    place = f" on {node}" if node else ""
    missing = isinstance(cause, ModuleNotFoundError)
    failure = ExecutionError(
        Problem(
            subject=task_name,
            message=f"the task failed{place} with {type(cause).__name__}: {_text(cause)}",
            remedy="install the same packages on every node" if missing else "",
        )
    )
    failure.__cause__ = error
    return failure


def exhausted_error(task_name: str, node: str, fault: Fault, *, memory_bytes: int, memory_limit: int) -> ExecutionError:
    """What to raise when a budget is spent."""
    place = f", last on {node}" if node else ""
    message = f"given up after {fault.limit} retries{place} ({fault.cause}: {fault.detail})"
    remedy = ""
    if fault.wants_memory:
        asked, largest = (f"{nbytes / 2**30:.2f} GiB" for nbytes in (memory_bytes, memory_limit))
        message += f"; the last attempt asked for {asked} of memory, the largest node has {largest}"
        remedy = "use larger nodes or a lower --task-memory, or look for the crash in the node's logs"
    return ExecutionError(Problem(subject=task_name, message=message, remedy=remedy))


def _text(error: BaseException) -> str:
    return str(error).strip() or "no message"


def _first_line(error: BaseException) -> str:
    return _text(error).splitlines()[0]
