"""The plan's digest: same digest, same bytes. Hashes names, layouts, methods, numbers, seeds and input identities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from enum import Enum

from raymerge.checkpoint.nouns import TensorRef
from raymerge.checkpoint.row_runs import RowRuns
from raymerge.checkpoint.steps import Step
from raymerge.planning.nouns import TensorJob

# Raise when the same plan would give other bytes: a changed formula, random stream, rounding or file layout.
FORMAT_VERSION = 2


def plan_digest(shards: Iterable[tuple[str, tuple[TensorJob, ...]]], environment: tuple[str, ...] = ()) -> str:
    """64 hexadecimal digits. `environment` names what else bears on the bytes (device, architecture), if anything."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, *environment]).encode())
    for file_name, jobs in shards:
        digest.update(f"\n{file_name}".encode())
        for job in jobs:
            digest.update(_canonical(job).encode())
    return digest.hexdigest()


def _canonical(job: TensorJob) -> str:
    base = _ref(job.base) if job.base is not None else None
    inputs = [[_ref(each.ref), sorted(each.parameters.items())] for each in job.inputs]
    output = [job.output.name, job.output.dtype.value, job.output.shape]
    method = [job.method, job.method_sha256] if job.method_sha256 else job.method
    return json.dumps([output, method, sorted(job.parameters.items()), job.seed, job.slots, base, inputs])


def _ref(ref: TensorRef) -> list[object]:
    plain: list[object] = [ref.file.identity, ref.offset, ref.spec.dtype.value, ref.spec.shape]
    if not ref.steps:
        return plain
    stored = ref.stored or ref.spec
    return [*plain, stored.dtype.value, stored.shape, [_step(step) for step in ref.steps]]


def _step(step: Step) -> list[object]:
    return [type(step).__name__, *((field.name, _value(getattr(step, field.name))) for field in fields(step))]


def _value(value: object) -> object:
    if isinstance(value, TensorRef):
        return _ref(value)
    if isinstance(value, RowRuns):
        return value.sha256
    if isinstance(value, tuple):
        return [_value(each) for each in value]
    return value.value if isinstance(value, Enum) else value
