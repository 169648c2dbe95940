"""Running a plan's shard tasks in this process or on Ray, and what each task calls."""

from __future__ import annotations

import contextlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymerge.checkpoint.layout import ADAPTER_CONFIG_NAME, CONFIG_NAME
from raymerge.compute import open_operations
from raymerge.errors import PlanError, Problem
from raymerge.events import Event, Message, TaskFinished, TaskSurveyed
from raymerge.execute.beside import side_by_side
from raymerge.execute.inline import run_inline
from raymerge.execute.task import Measure, Measured, Outcome, P, R, StoppedError, Task, stop_requested
from raymerge.merging.nouns import ShardOptions
from raymerge.methods import all_methods, load_methods
from raymerge.methods.extension import Origin, origin_of
from raymerge.methods.survey import Question
from raymerge.options import MergeOptions
from raymerge.output.journal import Destination
from raymerge.planning.copies import needs_no_worker
from raymerge.planning.nouns import Plan, ShardReceipt, ShardTask
from raymerge.planning.phases import SurveyReceipt, SurveyTask, with_findings
from raymerge.storage import is_local, join_url, parent_url, store_for
from raymerge.storage.hub_spool import spool_folder

if TYPE_CHECKING:
    from raymerge.execute.ray.session import RaySession

OnEvent = Callable[[Event], None]

# A worker with numpy, numba, its compiled kernels and a storage client, before it reads a tensor: measured 190 MB with
# local files and 240 MB with S3 on Linux, Python 3.11.
WORKER_BASELINE_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 16 << 20
# Shards that the store copies by itself: the default 2 GB are 30 parts, so that some hundreds are under way at once.
_COPIED_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """One task for a worker: make the shard, or only read the checksum of one that an earlier run finished."""

    shard: ShardTask
    only_checksum: bool = False

    def needs_worker(self, out: str) -> bool:
        """False for shards that the store of `out` makes out of ranges of its own objects, when told to."""
        return self.only_checksum or is_local(out) or not needs_no_worker(self.shard, store_for(out))


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyWork:
    """One task of a first phase, and what it is asked."""

    task: SurveyTask
    question: Question


def shards_to_do(planned: Plan, destination: Destination, known: tuple[ShardReceipt, ...]) -> tuple[ShardWork, ...]:
    """What is left: shards to make, and finished ones whose checksum nobody lived to note."""
    settled = {receipt.file_name for receipt in known}
    return tuple(
        ShardWork(shard=shard, only_checksum=shard.file_name in destination.kept)
        for shard in planned.shards
        if shard.file_name not in settled
    )


def needs_survey(planned: Plan, work: Iterable[ShardWork]) -> bool:
    """Whether a tensor is still to make whose job needs what a first phase finds."""
    surveyed = set(planned.surveyed)
    return bool(surveyed) and any(
        job.output.name in surveyed for each in work if not each.only_checksum for job in each.shard.jobs
    )


class Runner(ABC):
    """Runs shard work on one executor; what the store copies by itself is told to it by this process meanwhile."""

    def __init__(self, options: MergeOptions, on_event: OnEvent) -> None:
        self._options = options
        self._on_event = on_event

    def check(self, planned: Plan, out: str, work: tuple[ShardWork, ...]) -> None:
        """Raise PlanError for what this executor cannot reach or hold; called before anything is written."""
        if any(each.needs_worker(out) for each in work):
            self._check(planned, out)

    def survey(self, planned: Plan, out: str) -> Plan:
        """Carry out the plan's first phase, if it has one: the plan with what that found handed to its jobs."""
        function = partial(do_survey, options=self._shard_options(planned, out))

        def ask(number: int, question: Question, tasks: Sequence[SurveyTask]) -> Iterator[SurveyReceipt]:
            work = [
                Task(
                    name=f"survey {number} of {task.name}",
                    payload=SurveyWork(task=task, question=question),
                    memory_bytes=WORKER_BASELINE_BYTES + task.projected_bytes,
                )
                for task in tasks
            ]
            outcomes = self._outcomes(function, work, on_event=self._on_survey_event, measure=_measure_survey)
            return (outcome.result for outcome in outcomes)

        return with_findings(planned, ask)

    def _on_survey_event(self, event: Event) -> None:
        if isinstance(event, TaskFinished):
            event = TaskSurveyed(task=event.task, read_bytes=event.read_bytes, seconds=event.seconds, node=event.node)
        self._on_event(event)

    def run(self, planned: Plan, out: str, work: tuple[ShardWork, ...]) -> Iterator[ShardReceipt]:
        """Receipts in the order in which shards end."""
        working = tuple(each for each in work if each.needs_worker(out))
        copying = tuple(each for each in work if not each.needs_worker(out))
        if not copying:
            return self._run(planned, out, working)
        if not working:
            return self._copy(planned, out, copying, lambda: False)
        return side_by_side(
            lambda stopping: self._copy(planned, out, copying, stopping), self._run(planned, out, working)
        )

    @abstractmethod
    def _check(self, planned: Plan, out: str) -> None: ...

    @abstractmethod
    def _outcomes(
        self, function: Callable[[P], R], tasks: Sequence[Task[P]], *, on_event: OnEvent, measure: Measure[R]
    ) -> Iterator[Outcome[R]]: ...

    def _run(self, planned: Plan, out: str, work: tuple[ShardWork, ...]) -> Generator[ShardReceipt, None, None]:
        function = self._function(planned, out)
        outcomes = self._outcomes(function, _tasks(work), on_event=self._on_event, measure=_measure)
        return (replace(outcome.result, node=outcome.node) for outcome in outcomes)

    def _copy(
        self, planned: Plan, out: str, work: tuple[ShardWork, ...], stopping: Callable[[], bool]
    ) -> Iterator[ShardReceipt]:
        """In threads of this process, whatever the executor: they send requests and wait."""
        outcomes = run_inline(
            partial(self._function(planned, out), stopping=stopping),
            _tasks(work),
            on_event=self._on_event,
            measure=_measure,
            max_tasks=_COPIED_AT_ONCE,
        )
        return (outcome.result for outcome in outcomes)

    def _function(self, planned: Plan, out: str) -> Callable[..., ShardReceipt]:
        return partial(do_work, options=self._shard_options(planned, out))

    def _shard_options(self, planned: Plan, out: str) -> ShardOptions:
        options = self._options
        sources = (origin.source for origin in method_origins(planned).values())
        return ShardOptions(
            out=out,
            memory=options.memory(out or None),
            device=options.device,
            fail_on_nonfinite=options.nan == "error",
            method_sources=tuple(source for source in sources if source is not None),
        )


@contextmanager
def open_runner(options: MergeOptions, on_event: OnEvent, *, expect_work: bool = True) -> Iterator[Runner]:
    """The runner of the chosen executor. Ray is started or joined at once, beside the planning.

    Without `expect_work` that waits until there is any.
    """
    if options.executor == "inline":
        yield InlineRunner(options, on_event)
        return
    from raymerge.execute.ray.session import RaySession

    session = RaySession(options.address)
    with contextlib.closing(session):
        if expect_work:
            session.start()
        yield RayRunner(options, on_event, session)


class InlineRunner(Runner):
    """In this process: shards one after the other, the tensors of each on several threads."""

    def _check(self, planned: Plan, out: str) -> None:  # noqa: ARG002
        open_operations(self._options.device)

    def _outcomes(
        self, function: Callable[[P], R], tasks: Sequence[Task[P]], *, on_event: OnEvent, measure: Measure[R]
    ) -> Iterator[Outcome[R]]:
        from raymerge.merging.buffers import drop_idle_buffers

        try:
            yield from run_inline(function, tasks, on_event=on_event, measure=measure)
        finally:
            drop_idle_buffers()


class RayRunner(Runner):
    """One Ray task per shard."""

    def __init__(self, options: MergeOptions, on_event: OnEvent, session: RaySession) -> None:
        super().__init__(options, on_event)
        self._session = session
        self._runtime_env: Mapping[str, Any] = {}

    def _check(self, planned: Plan, out: str) -> None:
        alone = tuple(
            _of_this_process(name, origin)
            for name, origin in method_origins(planned).items()
            if origin.sha256 and not (origin.source or origin.is_installed)
        )
        if alone:
            raise PlanError(*alone)
        if self._session.is_private:
            self._on_event(Message(text="waiting for a private Ray to start"))
        self._session.wait()
        if not self._session.is_private:
            from raymerge.execute.ray.code import environment_of_tasks

            self._runtime_env = environment_of_tasks()
            problems = unshared_folders(local_configs(planned), spool_folder(out))
            if problems:
                raise PlanError(*problems)

    def _outcomes(
        self, function: Callable[[P], R], tasks: Sequence[Task[P]], *, on_event: OnEvent, measure: Measure[R]
    ) -> Iterator[Outcome[R]]:
        from raymerge.execute.ray.executor import run_on_ray
        from raymerge.execute.ray.options import RayOptions

        options = RayOptions(
            task_cpus=self._options.threads,
            task_gpus=self._options.gpus,
            max_tasks=self._options.max_tasks,
            prefer_labels=self._options.labels,
            measure=measure,
            runtime_env=self._runtime_env,
        )
        if self._session.is_private:  # its one node is not lost by itself, and no other will come
            options = replace(options, settle_seconds=0, unschedulable_seconds=0)
        return run_on_ray(function, tasks, on_event=on_event, options=options)


def method_origins(planned: Plan) -> dict[str, Origin]:
    """Where the code of each of the plan's methods came from, by the method's name."""
    known = all_methods()
    return {name: origin_of(known[name]) for name in planned.methods if name in known}


def _of_this_process(method: str, origin: Origin) -> Problem:
    return Problem(
        subject=method,
        message=f"is defined in {origin.name}, which this process alone has loaded",
        remedy='name its file, so that workers get it too: --methods FILE, or methods=("FILE",)',
    )


def local_configs(planned: Plan) -> tuple[str, ...]:
    """The configs of inputs, adapters too, in folders of this machine, or of a disk that it shares."""
    models = [join_url(model.url, CONFIG_NAME) for model in planned.models]
    adapters = [
        join_url(model.adapter.url, ADAPTER_CONFIG_NAME) for model in planned.models if model.adapter is not None
    ]
    return tuple(path for path in dict.fromkeys((*models, *adapters)) if is_local(path))


def unshared_folders(configs: tuple[str, ...], out: str) -> tuple[Problem, ...]:
    """A problem for every local folder that some node of the cluster does not see as this process does.

    The driver leaves a file of random text in the output folder for a moment; an input is known by its config.
    """
    from raymerge.execute.ray.nodes import nodes_without

    found = []
    for path in configs:
        text = store_for(path).read(path, max_bytes=_MAX_CONFIG_BYTES).decode()
        found += [_unshared(parent_url(path), nodes) for nodes in [nodes_without(path, text)] if nodes]
    if is_local(out):
        path, nonce = join_url(out, f".raymerge-{secrets.token_hex(8)}.probe"), secrets.token_hex(32)
        is_new = not Path(out).exists()
        try:
            store_for(out).put(path, nonce.encode())
            found += [_unshared(out, nodes) for nodes in [nodes_without(path, nonce)] if nodes]
        finally:
            store_for(out).delete(path)
            if is_new and found:
                with contextlib.suppress(OSError):
                    Path(out).rmdir()
    return tuple(found)


def _unshared(folder: str, nodes: list[str]) -> Problem:
    shown = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
    return Problem(
        subject=folder,
        message=f"is a local folder that {shown} cannot see",
        remedy="use s3:// or hf:// locations, a disk that every node mounts, or --executor inline",
    )


def do_work(work: ShardWork, *, options: ShardOptions, stopping: Callable[[], bool] = lambda: False) -> ShardReceipt:
    """What every task calls, in whatever process it runs."""
    from raymerge.merging.copies import copy_shard
    from raymerge.merging.receipts import checksum_shard

    load_methods(options.method_sources)
    if work.only_checksum:
        return checksum_shard(work.shard, options)

    def raise_if_stopped() -> None:
        if stopping():
            raise StoppedError
        _raise_if_stopped()

    if needs_no_worker(work.shard, store_for(options.out)):
        return copy_shard(work.shard, options, raise_if_stopped)
    from raymerge.merging.shard import run_shard

    return run_shard(work.shard, options, raise_if_stopped)


def do_survey(work: SurveyWork, *, options: ShardOptions) -> SurveyReceipt:
    """What every task of a first phase calls."""
    from raymerge.merging.survey import survey_shard

    load_methods(options.method_sources)
    return survey_shard(work.task, work.question, options, _raise_if_stopped)


def _raise_if_stopped() -> None:
    if stop_requested():
        raise StoppedError


def _tasks(work: tuple[ShardWork, ...]) -> list[Task[ShardWork]]:
    return [
        Task(
            name=each.shard.file_name,
            payload=each,
            memory_bytes=WORKER_BASELINE_BYTES + (0 if each.only_checksum else each.shard.projected_bytes),
        )
        for each in work
    ]


def _measure(receipt: ShardReceipt) -> Measured:
    return Measured(receipt.read_bytes, receipt.nbytes, receipt.phase_seconds)


def _measure_survey(receipt: SurveyReceipt) -> Measured:
    return Measured(receipt.read_bytes)
