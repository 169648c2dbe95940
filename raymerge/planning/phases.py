"""First phases: which jobs a method surveys before it merges any, and what it finds handed to them.

What is found follows from the plan and its inputs, so the digest does not cover it, and headers do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymerge.dtypes import DType
from raymerge.errors import Problem
from raymerge.methods import method as find_method
from raymerge.methods.declaration import Method
from raymerge.methods.survey import Answer, Question, Survey, SurveyedTensor
from raymerge.planning.binding import BoundModule
from raymerge.planning.nouns import JobInput, Plan, TensorJob


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyTask:
    """The jobs of one shard that a survey looks at, in the model's order. `position` is among all of its tasks."""

    position: int
    name: str
    jobs: tuple[TensorJob, ...]
    projected_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyReceipt:
    """What a task of a first phase reports: its position, and its answer to one question."""

    position: int
    answer: Answer
    read_bytes: int


Ask = Callable[[int, Question, Sequence[SurveyTask]], Iterable[SurveyReceipt]]


def survey_problems(
    method: Method, modules: Sequence[BoundModule], jobs: Sequence[TensorJob], line: int | None
) -> Iterator[Problem]:
    """Why a recipe's survey cannot be made, if it asks for one."""
    survey = method.survey
    own = [job for job in jobs if job.method == method.name]
    taking_part = [job for job in own if survey is not None and survey.applies(job.parameters)]
    if survey is None or not taking_part:
        return
    subject = survey.setting
    if len(taking_part) < len(own):
        message = f"holds for {len(taking_part)} of {len(own)} tensors, such as {taking_part[0].output.name}"
        yield Problem(subject=subject, message=message, remedy="it is one choice for the whole model", line=line)
    elif len(modules) > 1 or len(modules[0].groups) > 1 or modules[0].is_sliced:
        message = "looks at whole models, found slices or modules"
        yield Problem(subject=subject, message=message, remedy="list whole models under `models`", line=line)
    else:
        complaint = survey.check(_tensors([taking_part]), modules[0].groups[0].table.labels)
        if complaint:
            yield Problem(subject=subject, message=complaint, line=line)


def surveyed_names(method: Method, jobs: Sequence[TensorJob]) -> tuple[str, ...]:
    """The output tensors that the method surveys, in the order of `jobs`."""
    survey = method.survey
    if survey is None:
        return ()
    return tuple(job.output.name for job in jobs if job.method == method.name and survey.applies(job.parameters))


def survey_passes(method: Method, jobs: Sequence[TensorJob], surveyed: Sequence[str]) -> int:
    """How often the survey reads its tensors, as a rule."""
    names = set(surveyed)
    taking_part = [job for job in jobs if job.output.name in names]
    return method.survey.passes(_tensors([taking_part])) if method.survey is not None and taking_part else 0


def survey_tasks(plan: Plan) -> tuple[SurveyTask, ...]:
    places = {name: place for place, name in enumerate(plan.surveyed)}
    tasks: list[SurveyTask] = []
    for shard in plan.shards:
        jobs = sorted((job for job in shard.jobs if job.output.name in places), key=lambda job: places[job.output.name])
        if jobs:
            task = SurveyTask(
                position=len(tasks), name=shard.file_name, jobs=tuple(jobs), projected_bytes=shard.projected_bytes
            )
            tasks.append(task)
    return tuple(tasks)


def with_findings(plan: Plan, ask: Ask) -> Plan:
    """The plan after its first phase. `ask(round, question, tasks)` has the tasks answer a question."""
    tasks = survey_tasks(plan)
    if not tasks:
        return plan
    rounds = _survey(plan).rounds(_tensors([task.jobs for task in tasks]))
    number = 1
    try:
        question = next(rounds)
        while True:
            asked = tasks if question.tasks is None else [tasks[position] for position in question.tasks]
            answers = {receipt.position: receipt.answer for receipt in ask(number, question, asked)}
            question = rounds.send(answers)
            number += 1
    except StopIteration as end:
        found: Sequence[Sequence[Mapping[str, Any]]] = end.value
    by_name = dict(zip((job.output.name for task in tasks for job in task.jobs), found, strict=True))
    shards = (
        replace(shard, jobs=tuple(_told(job, by_name.get(job.output.name)) for job in shard.jobs))
        for shard in plan.shards
    )
    return replace(plan, shards=tuple(shards))


def _survey(plan: Plan) -> Survey:
    (name,) = plan.methods
    survey = find_method(name).survey
    assert survey is not None
    return survey


def _told(job: TensorJob, found: Sequence[Mapping[str, Any]] | None) -> TensorJob:
    if found is None:
        return job
    inputs: Iterator[JobInput] = (replace(each, found=of) for each, of in zip(job.inputs, found, strict=True))
    return replace(job, inputs=tuple(inputs))


def _tensors(tasks: Sequence[Sequence[TensorJob]]) -> list[SurveyedTensor]:
    return [
        SurveyedTensor(
            task=position,
            element_count=job.output.element_count,
            is_wide=any(ref.spec.dtype is DType.F64 for ref in job.refs),
            each=tuple(each.parameters for each in job.inputs),
        )
        for position, jobs in enumerate(tasks)
        for job in jobs
    ]
