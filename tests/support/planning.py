"""Checkpoints that exist only as headers, and plans made from them: planning is pure, so its tests need no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint, SourceFile, TensorRef, TensorSpec
from raymerge.dtypes import DType
from raymerge.planning.build import PlanOptions, build_plan
from raymerge.planning.memory import MemoryRules
from raymerge.planning.nouns import Plan, TensorJob
from raymerge.recipe.load import parse_recipe
from raymerge.recipe.nouns import ModelReference

Shapes = Mapping[str, tuple[int, ...]]


def llama_names(
    layers: int, *, hidden: int = 8, inner: int = 16, vocab: int = 32, head: bool = True
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{i}.self_attn.{name}.weight"] = (hidden, hidden)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if head:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def checkpoint(
    reference: str,
    shapes: Shapes,
    *,
    config: Mapping[str, Any] | None = None,
    dtype: DType = DType.BF16,
    dtypes: Mapping[str, DType] | None = None,
    identity: str = "",
) -> Checkpoint:
    file = SourceFile(
        url=f"/models/{reference}/model.safetensors", nbytes=0, version="v", identity=identity or reference
    )
    tensors, offset = {}, 1000
    for name, shape in shapes.items():
        spec = TensorSpec(name=name, dtype=(dtypes or {}).get(name, dtype), shape=shape)
        tensors[name] = TensorRef(spec=spec, file=file, offset=offset)
        offset += spec.nbytes
    if config is None:
        layers = {int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")}
        config = {"num_hidden_layers": len(layers), "hidden_size": 8}
    return Checkpoint(
        reference=reference,
        url=f"/models/{reference}",
        origin="local folder",
        config=config,
        tensors=tensors,
        files=(file,),
        side_files=(),
    )


def plan_of(
    recipe: str,
    *checkpoints: Checkpoint,
    shard_bytes: int = 10**12,
    seed: int = 0,
    device: str = "cpu",
    memory: MemoryRules | None = None,
) -> Plan:
    """Plan a recipe whose models are named like the checkpoints; raises PlanError as planning does."""
    parsed = parse_recipe(recipe)
    assert parsed.recipe is not None
    opened = {ModelReference(path=each.reference): each for each in checkpoints}
    options = PlanOptions(device=device, random_seed=seed, shard_bytes=shard_bytes, memory=memory or MemoryRules())
    return build_plan(parsed.recipe, opened, options, known_problems=parsed.problems)


def jobs_of(plan: Plan) -> dict[str, TensorJob]:
    return {job.output.name: job for shard in plan.shards for job in shard.jobs}
