"""What a cluster is asked to run: the recipe itself, and places that the cluster can reach. No secret travels."""

from __future__ import annotations

import base64
import re
import secrets
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raymerge.errors import PlanError, Problem, UsageError
from raymerge.planning.binding import model_references
from raymerge.recipe.load import load_recipe, read_recipe_text
from raymerge.recipe.nouns import ModelReference, Recipe
from raymerge.recipe.reference import is_local_path, is_url
from raymerge.storage import is_local, redact, store_for

# The entrypoint is one argument of `sh -c`, and Linux takes no argument above 128 KiB (MAX_ARG_STRLEN).
_MAX_ENTRYPOINT_BYTES = 120 << 10
_MAX_RECIPE_BYTES = 1 << 20
_HEREDOC = "RECIPE"
_UNPACK = "import base64,sys,zlib; sys.stdout.buffer.write(zlib.decompress(base64.b64decode(sys.argv[1])))"
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|KEY(_|$)", re.IGNORECASE)
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A merge to run elsewhere.

    `recipe` is its text; `arguments` are those of `raymerge merge` after CONFIG; `environment` holds settings that are
    no secret (a region, an endpoint), for the driver and its workers.
    """

    job_id: str
    recipe: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def read_recipe(config: str) -> str:
    """The recipe's text, from a path, a URL or the text itself, as this machine sees them."""
    return read_recipe_text(config, read_url=lambda url: store_for(url).read(url, max_bytes=_MAX_RECIPE_BYTES).decode())


def make_request(
    recipe: str, out: str, *, options: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
) -> JobRequest:
    """Raises RecipeError or PlanError with everything that the cluster could not read, or should not be told."""
    problems = [*unreachable_models(load_recipe(recipe)), *_out_problems(out), *_secret_problems(recipe)]
    if problems:
        raise PlanError(*problems)
    return JobRequest(
        job_id=f"raymerge-{secrets.token_hex(4)}",
        recipe=recipe,
        arguments=(out, *options),
        environment=dict(environment or {}),
    )


def shell_entrypoint(request: JobRequest) -> str:
    """The command line for a shell on the cluster. The job's own RAY_ADDRESS tells it which Ray to join.

    The recipe stands in it readably, or packed where it is too long for one command line or does not end its last line.
    """
    command = shlex.join(["raymerge", "merge", "-", *request.arguments])
    end = _HEREDOC
    while end in request.recipe.splitlines():
        end += "_"
    entrypoint = f"{command} <<'{end}'\n{request.recipe}{end}\n"
    if len(entrypoint.encode()) <= _MAX_ENTRYPOINT_BYTES and request.recipe.endswith("\n"):
        return entrypoint
    packed = base64.b64encode(zlib.compress(request.recipe.encode(), 9)).decode()
    entrypoint = f"{shlex.join(['python3', '-c', _UNPACK, packed])} | {command}"
    if len(entrypoint) > _MAX_ENTRYPOINT_BYTES:
        found = f"is {len(packed):,} bytes when packed, a command line holds {_MAX_ENTRYPOINT_BYTES:,}"
        remedy = "copy it to the cluster's head and run there: ray job submit -- raymerge merge CONFIG OUT"
        raise UsageError(Problem(subject="the recipe", message=found, remedy=remedy))
    return entrypoint


def read_environment(settings: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`NAME=VALUE`, or `NAME` for the value that it has here. Raises UsageError, for names that sound secret too."""
    found: dict[str, str] = {}
    problems = []
    for setting in settings:
        name, separator, value = setting.partition("=")
        problem = _variable_problem(name, has_value=bool(separator) or name in environ)
        if problem is not None:
            problems.append(problem)
        found[name] = value if separator else environ.get(name, "")
    if problems:
        raise UsageError(*problems)
    return found


def unreachable_models(recipe: Recipe) -> Iterator[Problem]:
    """Models that lie on this machine, or that would be another model elsewhere."""
    for reference in (each for named in model_references(recipe) for each in (named, named.adapter) if each):
        line = _line(recipe, reference)
        if is_local_path(reference.path) or (is_url(reference.path) and is_local(reference.path)):
            message = "is a folder of this machine, which the cluster cannot read"
            remedy = "upload it, and name it as s3://bucket/folder or as hub id"
            yield Problem(subject=reference.path, message=message, remedy=remedy, line=line)
        elif not is_url(reference.path) and Path(reference.path).exists():
            message = "is a folder here, and would be a model of the hub on the cluster"
            remedy = f"say which: hf://{reference.path} for the hub's, or upload the folder to s3://bucket/folder"
            yield Problem(subject=reference.path, message=message, remedy=remedy, line=line)


def _out_problems(out: str) -> Iterator[Problem]:
    if is_local(out):
        message = "is a folder of this machine, and would be one of the cluster's head there"
        yield Problem(subject=f"OUT {out}", message=message, remedy="give a URL: s3://bucket/folder")
    elif redact(out) != out:
        yield _told_problem(f"OUT {redact(out)}", line=None)


def _secret_problems(recipe: str) -> Iterator[Problem]:
    """Job requests are kept by the cluster and shown on its dashboard."""
    for number, line in enumerate(recipe.splitlines(), start=1):
        if redact(line) != line:
            yield _told_problem(redact(line.strip()), line=number)


def _told_problem(subject: str, *, line: int | None) -> Problem:
    message = "holds a password, token or signed address, which the cluster's dashboard would show"
    remedy = "let the nodes have a role, or credentials in their environment"
    return Problem(subject=subject, message=message, remedy=remedy, line=line)


def _variable_problem(name: str, *, has_value: bool) -> Problem | None:
    subject = f"--env {name}"
    if _VARIABLE_NAME.fullmatch(name) is None:
        return Problem(subject=subject, message="found no variable's name", remedy="--env NAME or --env NAME=VALUE")
    if _SECRET_NAME.search(name):
        message = "sounds like a secret; job requests are kept by the cluster and shown on its dashboard"
        remedy = "set it on the nodes: an instance role, the cluster file's set-up, or a Kubernetes secret"
        return Problem(subject=subject, message=message, remedy=remedy)
    if not has_value:
        return Problem(subject=subject, message="is not set here", remedy=f"--env {name}=VALUE")
    return None


def _line(recipe: Recipe, reference: ModelReference) -> int | None:
    for module in recipe.modules:
        for source in (*module.models, *(source for each in module.slices for source in each.sources)):
            if reference in (source.model, source.model.adapter):
                return source.line
    return recipe.lines.get("base_model")
