"""Run tasks on Ray. The driver owns the retry budgets; Ray itself retries nothing."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import ray
from ray.exceptions import RayError, RaySystemError, TaskCancelledError

from raymerge.events import Event, Message, TaskFinished, TaskRetried, TaskStarted
from raymerge.execute.ray.capacity import (
    Node,
    Request,
    dead_node_ids,
    draining_nodes,
    largest_memory,
    living_nodes,
    no_room_error,
    slot_count,
)
from raymerge.execute.ray.faults import Fault, classify, exhausted_error, final_error, node_lost
from raymerge.execute.ray.growth import nodes_are_coming
from raymerge.execute.ray.metrics import counted
from raymerge.execute.ray.options import RayOptions
from raymerge.execute.ray.pace import Pace
from raymerge.execute.ray.worker import attempt, pack
from raymerge.execute.task import Outcome, P, R, Task, jittered_seconds

# Up to this many tasks are all submitted at once, so that an autoscaler sees the whole demand.
_SUBMIT_ALL = 200
_POLL_SECONDS = 1.0
_NODES_SECONDS = 5.0
# A cancelled task gets KeyboardInterrupt between two calls of its main thread and this long to clean up (abort an
# upload, remove a file); then it is killed.
_CANCEL_SECONDS = 2.0


def run_on_ray(
    function: Callable[[P], R],
    tasks: Sequence[Task[P]],
    *,
    on_event: Callable[[Event], None],
    options: RayOptions = RayOptions(),  # noqa: B008 - frozen
) -> Iterator[Outcome[R]]:
    """Yield one outcome per task, in the order in which they end, on the Ray this process is connected to.

    `function` is packed with each task: a function of an importable module, or a functools.partial of one whose
    arguments are small and hold no secret. Results should be small too.

    A lost node costs nothing but time. A worker that dies on a living node, or is killed for memory, is replaced a few
    times with twice the memory; storage, set-up and Ray's own faults are retried a few times. A `RaymergeError` of the
    task is raised as it is, any other failure as an `ExecutionError`; what still runs is cancelled then, as it is when
    the iteration is interrupted or closed.
    """
    run = _Run(function, tasks, on_event=counted(on_event), options=options)
    try:
        yield from run.outcomes()
    finally:
        run.cancel()


@dataclass(slots=True, kw_only=True)
class _Attempt(Generic[P]):
    """A task on its way: what it asks for now, where it runs, and what it has survived."""

    task: Task[P]
    memory_bytes: int
    suspects: frozenset[str] = frozenset()  # ids of the nodes that may be running it; one, once it has reported
    node: str = ""
    started_at: float | None = None
    is_given_up: bool = False
    is_told_to_leave: bool = False
    twin: Any = None  # the stream of another attempt at the same task, which runs beside this one
    retries: Counter[str] = field(default_factory=Counter)


class _Run(Generic[P, R]):
    """The state of one run: each task is ready, running, resting before a retry, or done."""

    def __init__(
        self,
        function: Callable[[P], R],
        tasks: Sequence[Task[P]],
        *,
        on_event: Callable[[Event], None],
        options: RayOptions,
    ) -> None:
        self._function = function
        self._on_event = on_event
        self._options = options
        self._ready = deque(_Attempt(task=task, memory_bytes=task.memory_bytes) for task in tasks)
        self._running: dict[Any, _Attempt[P]] = {}
        self._resting: list[tuple[float, int, _Attempt[P], Fault | None]] = []
        self._rest_count = 0
        self._nodes: tuple[Node, ...] = ()
        self._nodes_seen_at = float("-inf")
        self._no_room_since: float | None = None
        self._remote = ray.remote(attempt)
        self._pace = Pace(task_count=len(tasks), straggler_seconds=options.straggler_seconds)
        self._overtaken: list[Any] = []

    def outcomes(self) -> Iterator[Outcome[R]]:
        while self._ready or self._running or self._resting:
            self._look_at_nodes()
            self._wake()
            self._submit()
            for stream in self._wait():
                outcome = self._advance(stream)
                if outcome is not None:
                    yield outcome

    def cancel(self) -> None:
        """End what runs, first politely, then by force."""
        streams = [*self._running, *self._overtaken]
        if not streams or not ray.is_initialized():
            return
        with contextlib.suppress(RayError):  # a cluster that is gone has nothing left to cancel
            for stream in self._running:
                ray.cancel(stream, force=False)
            ends = [stream.completed() for stream in streams]
            _, stubborn = ray.wait(ends, num_returns=len(ends), timeout=_CANCEL_SECONDS, fetch_local=False)
            for end in stubborn:
                ray.cancel(end, force=True)
        self._running.clear()

    # Nodes and room

    def _look_at_nodes(self) -> None:
        now = time.monotonic()
        if now - self._nodes_seen_at < _NODES_SECONDS:
            return
        self._nodes = living_nodes()
        self._nodes_seen_at = now
        self._give_up_dead_nodes()
        self._leave_draining_nodes()
        waiting = [*self._ready, *(entry for entry in self._running.values() if entry.started_at is None)]
        too_large = next((entry for entry in waiting if not self._has_room(entry)), None)
        if too_large is None:
            self._no_room_since = None
            return
        if self._no_room_since is None:
            self._no_room_since = now
        if now - self._no_room_since < self._options.unschedulable_seconds:
            return
        problem = no_room_error(self._request(too_large), self._nodes)
        if not nodes_are_coming():
            raise problem
        self._on_event(Message(text=f"{problem}; waiting for the nodes that are starting", level="warning"))
        self._no_room_since = now

    def _give_up_dead_nodes(self) -> None:
        """Take attempts as lost that began on a node which is dead now.

        Ray says so itself where the connection breaks; of a node that only fell silent it declares the death after
        its health checks, but says nothing of the task for minutes more (ray 2.60).
        """
        dead = dead_node_ids()
        self._submit_again(dead)
        lost = {
            stream: entry
            for stream, entry in self._running.items()
            if entry.started_at is not None and entry.suspects <= dead
        }
        for stream, entry in lost.items():
            if entry.is_given_up:  # seen a second time: Ray has had the time to say it
                del self._running[stream]
                if not self._has_twin(entry):
                    self._retry(entry, node_lost("the node no longer answers"))
            entry.is_given_up = True

    def _submit_again(self, dead: frozenset[str]) -> None:
        """Take back what has not begun and may wait for a node that is dead now, and submit it anew.

        Ray leaves a request for a worker with a node that only fell silent, whatever room others have (ray 2.60).
        """
        for stream, entry in list(self._running.items()):
            if entry.started_at is None and entry.suspects & dead:
                if entry.is_given_up:  # seen a second time, as above
                    del self._running[stream]
                    ray.cancel(stream, force=False)
                    entry.memory_bytes -= 1  # equal requests share what waits: it must be another one
                    again = self._launch(entry)
                    twin = self._running.get(entry.twin)
                    if twin is not None:
                        twin.twin = again
                else:
                    entry.is_given_up = True

    def _leave_draining_nodes(self) -> None:
        """Stop attempts that cannot end before their node goes; they run again elsewhere meanwhile."""
        draining = draining_nodes()
        for stream, entry in self._running.items():
            deadline = min((draining.get(node_id, float("inf")) for node_id in entry.suspects), default=float("inf"))
            if entry.started_at is None or entry.is_told_to_leave:
                continue
            if not self._pace.ends_before(deadline, started_at=entry.started_at):
                entry.is_told_to_leave = True
                ray.cancel(stream, force=False)

    def _has_room(self, entry: _Attempt[P]) -> bool:
        request = self._request(entry)
        return any(request.fits(node) for node in self._nodes)

    def _request(self, entry: _Attempt[P]) -> Request:
        return Request(cpus=self._options.task_cpus, gpus=self._options.task_gpus, memory_bytes=entry.memory_bytes)

    # Submission

    def _submit(self) -> None:
        while self._ready and len(self._running) < self._in_flight_limit():
            self._launch(self._ready.popleft())
        if not self._ready and not self._resting:
            self._overtake()

    def _launch(self, entry: _Attempt[P]) -> Any:
        entry.suspects = frozenset(node.node_id for node in self._nodes)
        entry.node = ""
        entry.started_at = None
        entry.is_given_up = entry.is_told_to_leave = False
        stream = self._remote.options(
            name=entry.task.name,
            num_returns="streaming",
            num_cpus=self._options.task_cpus,
            num_gpus=self._options.task_gpus,
            memory=entry.memory_bytes,
            max_retries=0,
            retry_exceptions=False,
            **self._placement(),
        ).remote(pack(self._function, entry.task.payload))
        self._running[stream] = entry
        return stream

    def _overtake(self) -> None:
        """Start second attempts at tasks that hang: bytes are the same whoever writes them, and appear at once."""
        if any(entry.started_at is None for entry in self._running.values()):
            return  # what waits for room is not helped by more of it
        for stream, entry in list(self._running.items()):
            if entry.twin is None and self._pace.allows_second_attempt(started_at=entry.started_at or 0):
                second = _Attempt(task=entry.task, memory_bytes=entry.memory_bytes, twin=stream)
                entry.twin = self._launch(second)
                age = time.time() - (entry.started_at or 0)
                text = f"{entry.task.name} has run for {age:.0f} s on {entry.node}: a second attempt runs beside it"
                self._on_event(Message(text=text))

    def _placement(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        if self._options.runtime_env:
            chosen["runtime_env"] = dict(self._options.runtime_env)
        wanted = dict(self._options.prefer_labels)
        if wanted and any(node.has(wanted) for node in self._nodes):
            chosen |= {"label_selector": wanted, "fallback_strategy": [{"label_selector": {}}]}
        return chosen

    def _in_flight_limit(self) -> int:
        if self._options.max_tasks is not None:
            return self._options.max_tasks
        return max(_SUBMIT_ALL, 2 * slot_count(self._request(self._ready[0]), self._nodes))

    # Progress

    def _wait(self) -> list[Any]:
        """The streams that have something to say, within the time that nothing else is due."""
        timeout = _POLL_SECONDS
        if self._resting:
            timeout = min(timeout, max(0.0, self._resting[0][0] - time.monotonic()))
        streams = list(self._running)
        if not streams:
            time.sleep(timeout)
            return []
        first, rest = ray.wait(streams, num_returns=1, timeout=timeout, fetch_local=False)
        if not first or not rest:
            return list(first)
        also, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
        return [*first, *also]

    def _advance(self, stream: Any) -> Outcome[R] | None:
        entry = self._running.get(stream)
        if entry is None:  # overtaken a moment ago
            return None
        try:
            message = ray.get(next(stream))
        except StopIteration:
            self._fail(stream, RaySystemError("the task ended without a result"))  # type: ignore[no-untyped-call]
            return None
        except RayError as error:
            self._fail(stream, error)
            return None
        if entry.started_at is None:
            node_id, entry.node = message
            entry.suspects = frozenset((node_id,))
            entry.started_at = time.time()
            self._on_event(TaskStarted(task=entry.task.name, node=entry.node))
            return None
        del self._running[stream]
        self._drop(entry.twin)
        result, seconds = message
        self._pace.note(seconds)
        counts = self._options.measure(result)._asdict()
        self._on_event(TaskFinished(task=entry.task.name, seconds=seconds, node=entry.node, **counts))
        return Outcome(name=entry.task.name, result=result, node=entry.node, seconds=seconds)

    # Failure

    def _has_twin(self, entry: _Attempt[P]) -> bool:
        """Whether another attempt at the task of a failed one runs; it goes on alone."""
        twin = self._running.get(entry.twin)
        if twin is not None:
            twin.twin = None
        return twin is not None

    def _drop(self, twin: Any) -> None:
        """End the attempt that was overtaken."""
        if twin is not None and self._running.pop(twin, None) is not None:
            self._overtaken.append(twin)
            ray.cancel(twin, force=False)

    def _fail(self, stream: Any, error: BaseException) -> None:
        entry = self._running.pop(stream)
        if self._has_twin(entry):
            return
        fault = classify(error)
        if entry.is_told_to_leave and isinstance(error, TaskCancelledError):
            fault = node_lost("the node goes before the task could end")
        if fault is None:
            raise final_error(entry.task.name, entry.node, error) from error
        if fault.cause == "worker died":
            self._rest(entry, self._options.settle_seconds, fault)
        else:
            self._retry(entry, fault)

    def _rest(self, entry: _Attempt[P], seconds: float, undecided: Fault | None = None) -> None:
        self._rest_count += 1
        heapq.heappush(self._resting, (time.monotonic() + seconds, self._rest_count, entry, undecided))

    def _wake(self) -> None:
        while self._resting and self._resting[0][0] <= time.monotonic():
            _, _, entry, undecided = heapq.heappop(self._resting)
            if undecided is None:
                self._ready.append(entry)
            else:
                living = {node.node_id for node in living_nodes()}
                self._retry(entry, undecided if entry.suspects <= living else node_lost(undecided.detail))

    def _retry(self, entry: _Attempt[P], fault: Fault) -> None:
        """Spend one retry of the fault's budget, or give up."""
        memory_limit = largest_memory(self._nodes)
        entry.retries[fault.budget] += 1
        count = entry.retries[fault.budget]
        if fault.limit is not None and count > fault.limit:
            raise exhausted_error(
                entry.task.name, entry.node, fault, memory_bytes=entry.memory_bytes, memory_limit=memory_limit
            )
        if fault.wants_memory:
            # Nothing larger than the largest node could ever start; with all of it, the task has a node to itself.
            entry.memory_bytes = min(2 * entry.memory_bytes, max(memory_limit, entry.memory_bytes))
        # Losing nodes says nothing about the task, so its rest does not grow.
        wait_seconds = jittered_seconds(1 if fault.limit is None else count, self._options.retry_wait_seconds)
        self._on_event(
            TaskRetried(
                task=entry.task.name,
                cause=fault.cause,
                detail=fault.detail,
                attempt=count,
                limit=fault.limit,
                wait_seconds=wait_seconds,
                node=entry.node,
            )
        )
        self._rest(entry, wait_seconds)
