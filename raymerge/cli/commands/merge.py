"""raymerge merge"""

from __future__ import annotations

import raymerge
from raymerge.cli import options
from raymerge.cli.compatibility import Compatibility, with_compatibility
from raymerge.cli.displays import display_for
from raymerge.cli.screens.results import merge_done
from raymerge.cli.terminal import failures_reported, open_terminal


@with_compatibility
def merge(
    *,
    config: options.Config,
    out: options.Out,
    out_shard_size: options.OutShardSize = "2GB",
    random_seed: options.RandomSeed = 0,
    device: options.Device = None,
    copy_tokenizer: options.CopyTokenizer = True,
    write_model_card: options.WriteModelCard = True,
    overwrite: options.Overwrite = False,
    private: options.Private = True,
    nan: options.Nan = options.NonFinite.ERROR,
    keep_inputs: options.KeepInputs = False,
    methods: options.Methods = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    executor: options.ExecutorChoice = options.Executor.RAY,
    address: options.Address = None,
    task_cpus: options.TaskCpus = None,
    task_gpus: options.TaskGpus = None,
    max_tasks: options.MaxTasks = None,
    prefer_nodes: options.PreferNodes = None,
    task_memory: options.TaskMemory = None,
    compatibility: Compatibility,
) -> None:
    """Merge the models of a recipe into OUT. The same command continues a merge that was cut short."""
    terminal = open_terminal(json=json, quiet=quiet, verbosity=verbose)
    for notice in compatibility.notices:
        terminal.note(notice)
    target = options.read_out(out)
    with display_for(terminal, name=target.rstrip("/").rpartition("/")[2]) as display:
        name = options.config_name(config)
        with failures_reported(terminal, name, has_started=lambda: display.has_started):
            result = raymerge.merge(
                options.read_config(config),
                target,
                executor=executor.value,
                random_seed=random_seed,
                device=device or compatibility.device or "cpu",
                address=address,
                task_cpus=task_cpus or compatibility.threads,
                task_gpus=task_gpus,
                max_tasks=max_tasks,
                prefer_nodes=options.labels(prefer_nodes),
                overwrite=overwrite,
                private=private,
                nan=nan.value,
                copy_tokenizer=copy_tokenizer,
                write_model_card=write_model_card,
                keep_inputs=keep_inputs,
                methods=options.read_paths(methods),
                on_event=display,
                **options.sizes(out_shard_size=out_shard_size, task_memory=task_memory),
            )
    if not (json or quiet):
        terminal.result(
            merge_done(
                out=out,
                nbytes=result.nbytes,
                shard_count=result.shard_count,
                kept_count=result.kept_count,
                retries=result.retries,
                seconds=result.seconds,
            )
        )
