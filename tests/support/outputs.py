"""Plans over real folders, and outputs written from them without the merge engine."""

from __future__ import annotations

import zlib
from pathlib import Path

from checkpoints import write_llama

from raymerge.checkpoint.open import open_checkpoint
from raymerge.output.config import config_json
from raymerge.output.index import index_json
from raymerge.output.manifest import completed, running_manifest, to_bytes
from raymerge.planning.build import PlanOptions, build_plan
from raymerge.planning.header import shard_header
from raymerge.planning.nouns import Plan, ShardTask
from raymerge.recipe.load import load_recipe
from raymerge.recipe.nouns import ModelReference

RECIPE = """\
merge_method: linear
models:
  - model: {a}
    parameters: {{weight: 0.6}}
  - model: {b}
    parameters: {{weight: 0.4}}
dtype: bfloat16
"""


def plan_folders(recipe: str, *, shard_bytes: int = 20_000, cwd: str = "/", seed: int = 0) -> Plan:
    """Plan a recipe whose models are local folders."""
    parsed = load_recipe(recipe)
    names = [source.model for module in parsed.modules for source in module.models]
    names += [source.model for module in parsed.modules for each in module.slices for source in each.sources]
    names += [parsed.base_model] if parsed.base_model else []
    opened: dict[ModelReference, object] = {
        name: open_checkpoint(name.path, revision=name.revision, display=str(name), cwd=cwd)
        for name in dict.fromkeys(names)
    }
    return build_plan(parsed, opened, PlanOptions(shard_bytes=shard_bytes, random_seed=seed))


def two_model_plan(folder: Path, *, shard_bytes: int = 20_000, **options) -> Plan:
    """A linear merge of two small Llamas, `a` and `b`, written below `folder`."""
    for seed, name in enumerate("ab"):
        if not (folder / name).exists():
            write_llama(folder / name, layers=2, seed=seed, **options)
    return plan_folders(RECIPE.format(a=folder / "a", b=folder / "b"), shard_bytes=shard_bytes)


def shard_bytes_of(shard: ShardTask) -> bytes:
    """A whole file of this shard, filled with small finite bfloat16 numbers."""
    assert all(job.output.dtype.value == "BF16" for job in shard.jobs)
    return shard_header(shard) + b"\x80\x3c" * (shard.tensor_bytes // 2)


def write_output(plan: Plan, out: Path, *, complete: bool = True, shards: int | None = None) -> Path:
    """What a run leaves: all of it, or the first `shards` of an unfinished one."""
    out.mkdir(parents=True, exist_ok=True)
    manifest = running_manifest(plan)
    (out / "raymerge.json").write_bytes(to_bytes(manifest))
    (out / "config.json").write_bytes(config_json(plan.output_config))
    crc32 = {}
    for shard in plan.shards[:shards]:
        content = shard_bytes_of(shard)
        (out / shard.file_name).write_bytes(content)
        crc32[shard.file_name] = zlib.crc32(content)
    if complete:
        index = index_json(plan.shards)
        if index is not None:
            (out / "model.safetensors.index.json").write_bytes(index)
        (out / "raymerge.json").write_bytes(to_bytes(completed(manifest, crc32)))
    return out
