"""raymerge submit"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from raymerge.cli import options
from raymerge.cli.commands.merge import merge
from raymerge.cli.terminal import INTERRUPTED, Terminal, failures_reported, open_terminal
from raymerge.errors import Problem, UsageError

if TYPE_CHECKING:
    from raymerge.submit.request import JobRequest

_PANEL = "Submission"
# Options of merge that choose where it runs: the job runs on the cluster that it was submitted to.
_OWN_PLACE = ("config", "out", "executor", "address")


def _submission(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, **settings)


Config = Annotated[
    str | None,
    typer.Argument(
        metavar="CONFIG", help="The recipe: a path, a URL, or - for standard input. Its text is sent along."
    ),
]
Out = Annotated[str | None, typer.Argument(metavar="OUT", help="An s3:// URL. An unfinished output is continued.")]
DashboardAddress = Annotated[
    str | None, _submission("--address", metavar="URL", help="The cluster's dashboard: http://HEAD:8265.")
]
KubeRay = Annotated[bool, _submission("--kuberay", help="Run as a KubeRay RayJob, through kubectl's current context.")]
Manifest = Annotated[
    str | None,
    _submission("--manifest", metavar="FILE", help="The RayJob to fill in: cluster/kuberay-rayjob.yaml, edited."),
]
Image = Annotated[str | None, _submission("--image", help="The image for every container of the RayJob.")]
Env = Annotated[
    list[str] | None,
    _submission("--env", metavar="NAME[=VALUE]", help="A setting for the job's environment, no secret. Repeatable."),
]
Render = Annotated[bool, _submission("--render", help="Print the job request or manifest, and send nothing.")]
Attach = Annotated[str | None, _submission("--attach", metavar="JOB", help="Follow a job that was submitted before.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the job goes: a dashboard's address, or a RayJob."""

    address: str | None
    kuberay: bool
    manifest: str | None
    image: str | None

    def check(self, *, address_needed: bool) -> None:
        """Raises UsageError unless there is one place."""
        if self.kuberay and self.address:
            raise UsageError(Problem(subject="--kuberay", message="found --address too, expected one of the two"))
        if address_needed and not self.kuberay and not self.address:
            remedy = "--address http://HEAD:8265, or --kuberay"
            raise UsageError(Problem(subject="--address", message="found no cluster to submit to", remedy=remedy))
        if not self.kuberay and (self.manifest or self.image):
            message = "only KubeRay takes a manifest and an image"
            raise UsageError(Problem(subject="--manifest, --image", message=message, remedy="add --kuberay"))

    @property
    def options(self) -> str:
        return "--kuberay" if self.kuberay else f"--address {shlex.quote(self.address or '')}"


def _with_merge_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` every option of merge but those of place; it gets the click context as `context`."""
    own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "values"]
    taken = {each.name for each in own} | set(_OWN_PLACE)
    added = [each for each in inspect.signature(merge).parameters.values() if each.name not in taken]

    def wrapper(**values: Any) -> None:
        command(**values)

    wrapper.__doc__ = command.__doc__
    wrapper.__name__ = command.__name__
    wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *added)]
    )
    return wrapper


@_with_merge_options
def submit(
    context: typer.Context,
    *,
    config: Config = None,
    out: Out = None,
    address: DashboardAddress = None,
    kuberay: KubeRay = False,
    manifest: Manifest = None,
    image: Image = None,
    env: Env = None,
    render: Render = False,
    attach: Attach = None,
    **values: Any,
) -> None:
    """Run a merge as a job of a cluster, follow its log, and exit as it does. Takes every option of merge.

    Ctrl-C detaches: the job goes on, and --attach follows it again.
    """
    terminal = open_terminal(json=values["json"], quiet=values["quiet"], verbosity=values["verbose"])
    place = _Place(address=address, kuberay=kuberay, manifest=manifest, image=image)
    with failures_reported(terminal, attach or options.config_name(config or "submit")):
        place.check(address_needed=not render)
        if attach:
            code = _follow(terminal, place, attach)
        elif config is None or out is None:
            raise UsageError(Problem(subject="CONFIG OUT", message="found too few arguments, expected both"))
        else:
            _refuse_method_files(values.get("methods"))
            request = _request(config, out, merge_arguments(context), env or [])
            code = _print(place, request) if render else _submit_and_follow(terminal, place, request)
        raise typer.Exit(code)


def _refuse_method_files(files: list[str] | None) -> None:
    if files:
        message = "are files of this machine, which the cluster cannot read"
        remedy = "install the methods on its nodes as a package with the entry point raymerge.methods"
        raise UsageError(Problem(subject=f"--methods {' '.join(files)}", message=message, remedy=remedy))


def merge_arguments(context: typer.Context) -> tuple[str, ...]:
    """The options of merge that were given on the command line, as a command line."""
    names = set(inspect.signature(merge).parameters) - set(_OWN_PLACE)
    given = (each for each in context.command.params if each.name in names and _is_given(context, each.name or ""))
    return tuple(text for each in given for text in _written(each, context.params[each.name or ""]))


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _written(option: Any, value: Any) -> Iterable[str]:  # newer typers have an option class of their own, not click's
    name = max(option.opts, key=len)
    if option.count:
        return [name] * value
    if option.is_flag:
        return [name if value else max(option.secondary_opts, key=len)]
    values = value if option.multiple else [value]
    return [text for each in values for text in (name, str(getattr(each, "value", each)))]


def _request(config: str, out: str, arguments: tuple[str, ...], env: list[str]) -> JobRequest:
    from raymerge.submit.request import make_request, read_environment, read_recipe

    environment = read_environment(env, os.environ)
    return make_request(read_recipe(options.read_config(config)), out, options=arguments, environment=environment)


def _print(place: _Place, request: JobRequest) -> int:
    """Print what would be sent, and nothing else."""
    if place.kuberay:
        from raymerge.submit.kuberay import read_manifest, render

        sys.stdout.write(render(read_manifest(place.manifest), request, image=place.image))
    else:
        import json

        from raymerge.submit.ray_jobs import job_request

        sys.stdout.write(json.dumps(job_request(request), indent=2, ensure_ascii=False) + "\n")
    return 0


def _submit_and_follow(terminal: Terminal, place: _Place, request: JobRequest) -> int:
    if place.kuberay:
        from raymerge.submit.kuberay import KubeRayJobs, read_manifest, render

        rendered = render(read_manifest(place.manifest), request, image=place.image)
        KubeRayJobs().apply(rendered)
    else:
        from raymerge.submit.ray_jobs import RayJobs

        RayJobs(place.address or "").submit(request)
    terminal.note(f"submitted as {request.job_id}")
    return _follow(terminal, place, request.job_id)


def _follow(terminal: Terminal, place: _Place, job_id: str) -> int:
    from raymerge.submit.follow import exit_code, follow

    try:
        state = follow(_server(place), job_id, show=_show, note=terminal.note)
    except KeyboardInterrupt:
        _report_detached(terminal, place, job_id)
        return INTERRUPTED
    code = exit_code(state)
    if code or not terminal.json:
        told = f": {state.message}" if state.message and code else ""
        terminal.note(f"job {job_id} {state.status.value}{told}", level="warning" if code else "note")
    return code


def _report_detached(terminal: Terminal, place: _Place, job_id: str) -> None:
    follow = f"raymerge submit --attach {job_id} {place.options}"
    stop = f"kubectl delete rayjob {job_id}" if place.kuberay else f"ray job stop {job_id} {place.options}"
    if terminal.json:
        terminal.json_line({"event": "detached", "job": job_id, "follow": follow, "stop": stop})
    else:
        text = f"detached; the job goes on\n  follow  {follow}\n  stop    {stop}"
        terminal.err.print(Text(text, style="yellow"), soft_wrap=True)  # whole lines, to be copied


def _server(place: _Place) -> Any:
    if place.kuberay:
        from raymerge.submit.kuberay import KubeRayJobs

        return KubeRayJobs()
    from raymerge.submit.ray_jobs import RayJobs

    return RayJobs(place.address or "")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
