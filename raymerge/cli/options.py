"""The options that several commands share, each declared once."""

from __future__ import annotations

import os
import sys
from enum import Enum
from typing import Annotated, Any

import typer

from raymerge.errors import Problem, UsageError
from raymerge.options import SPOT_LABEL
from raymerge.sizes import parse_size

COMMON = "Common"
CLUSTER = "Cluster"
COMPATIBILITY = "Compatibility with mergekit-yaml"


class Executor(str, Enum):
    """Where the shards are made."""

    RAY = "ray"
    INLINE = "inline"


class NonFinite(str, Enum):
    """What a result that is not a finite number does."""

    WARN = "warn"
    ERROR = "error"


def _common(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=COMMON, **settings)


def _cluster(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=CLUSTER, **settings)


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="The recipe: a path, a URL, or - for standard input.")]
Out = Annotated[
    str,
    typer.Argument(metavar="OUT", help="A folder, s3://bucket/path or hf://user/name. Unfinished, it is continued."),
]
OutShardSize = Annotated[
    str,
    _common("--out-shard-size", metavar="SIZE", help="Most bytes per output file: 1B (1e9), 8MB, 2GiB, 123456."),
]
RandomSeed = Annotated[int, _common("--random-seed", help="Seed of the methods that draw random numbers.")]
Device = Annotated[str | None, _common("--device", help="Where to compute: cpu (the default), cuda, cuda:0.")]
CopyTokenizer = Annotated[
    bool, _common("--copy-tokenizer/--no-copy-tokenizer", help="Copy the base's tokenizer files to the output.")
]
WriteModelCard = Annotated[
    bool, _common("--write-model-card/--no-write-model-card", help="Write a README.md that describes the merge.")
]
Overwrite = Annotated[bool, _common("--overwrite", help="Replace another merge, or foreign weight files, in OUT.")]
Private = Annotated[
    bool,
    _common("--private/--public", help="Who may see an OUT on the hub (hf://user/name). It is made if there is none."),
]
Nan = Annotated[
    NonFinite,
    _common(
        "--nan",
        help="What a merged value that is not a finite number does. Tensors that are copied as they are pass unread; "
        "raymerge verify OUT --full looks at them too.",
    ),
]
KeepInputs = Annotated[
    bool, _common("--keep-inputs", help="Download hub models into the local hub cache instead of reading ranges.")
]
Methods = Annotated[
    list[str] | None,
    _common("--methods", metavar="FILE", help="A Python file that declares merge methods; may be given again."),
]
Quiet = Annotated[bool, _common("--quiet/--no-quiet", help="Print warnings and errors only.")]
Json = Annotated[bool, _common("--json", help="Print JSON, one value per line, errors too.")]
Verbose = Annotated[
    int, _common("-v", "--verbose", count=True, help="Show tracebacks and log lines; -vv shows more of them.")
]

ExecutorChoice = Annotated[Executor, _cluster("--executor", help="ray, or inline: this process and its threads.")]
Address = Annotated[
    str | None,
    _cluster(
        "--address",
        help="A Ray cluster: HOST:PORT, or auto for this machine's. Default: RAY_ADDRESS, else a private local Ray.",
    ),
]
TaskCpus = Annotated[
    int | None,
    _cluster("--task-cpus", min=1, help="Threads that make one shard. Default: 1 on Ray, every core inline."),
]
TaskGpus = Annotated[
    float | None,
    _cluster(
        "--task-gpus", min=0, help="GPUs that making one shard asks for, 0.5 for two at once. Default: 1 on cuda."
    ),
]
MaxTasks = Annotated[
    int | None, _cluster("--max-tasks", min=1, help="The most shards under way at a time. Default: what nodes hold.")
]
PreferNodes = Annotated[
    list[str] | None,
    _cluster(
        "--prefer-nodes",
        metavar="KEY=VALUE",
        help="A label of the nodes that shards go to first, others while those are busy or absent; may be given again. "
        "Default: market-type=spot.",
    ),
]
TaskMemory = Annotated[
    str | None,
    _cluster(
        "--task-memory",
        metavar="SIZE",
        help="The most memory that making one shard may take above its worker's own: 1GiB. 128MiB is always enough for "
        "four models on one thread; larger tensors stream.",
    ),
]


def read_config(config: str) -> str:
    """What the API takes for CONFIG: `-` becomes the text on standard input, `~` the home folder."""
    if config != "-":
        return os.path.expanduser(config)  # noqa: PTH111 - CONFIG may be a URL, which a Path would change
    text = sys.stdin.read()
    if not text.strip():
        raise UsageError(
            Problem(
                subject="CONFIG", message="standard input holds no recipe", remedy="raymerge merge - OUT < config.yaml"
            )
        )
    return text if "\n" in text else f"{text}\n"  # a text of several lines is taken for YAML, not for a path


def config_name(config: str) -> str:
    """How messages name the recipe."""
    return "the recipe on standard input" if config == "-" else config


def read_out(out: str) -> str:
    if not out.strip():  # a shell variable that is not set: the working directory is not what is meant
        raise UsageError(Problem(subject="OUT", message="found an empty name", remedy="name a folder or a URL"))
    return os.path.expanduser(out)  # noqa: PTH111 - as above


def read_paths(paths: list[str] | None) -> tuple[str, ...]:
    return tuple(os.path.expanduser(path) for path in paths or ())  # noqa: PTH111 - messages name them as given


def labels(given: list[str] | None) -> tuple[str, ...]:
    return tuple(given) if given else (SPOT_LABEL,)


def sizes(*, out_shard_size: str, task_memory: str | None) -> dict[str, Any]:
    """Both size options in bytes, by their API names; the one that was not given is left to the API's default."""
    given = {"out_shard_size": parse_size(out_shard_size, subject="--out-shard-size")}
    if task_memory is not None:
        given["task_memory"] = parse_size(task_memory, subject="--task-memory")
    return given
