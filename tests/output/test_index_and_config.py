from __future__ import annotations

import json

from outputs import two_model_plan

from raymerge.output.config import config_json
from raymerge.output.index import index_json


def test_the_index_names_every_tensor_once_and_its_sums_are_exact(tmp_path):
    plan = two_model_plan(tmp_path)
    index = json.loads(index_json(plan.shards))
    assert list(index["weight_map"]) == [job.output.name for shard in plan.shards for job in shard.jobs]
    assert set(index["weight_map"].values()) == {shard.file_name for shard in plan.shards}
    assert index["metadata"] == {"total_parameters": plan.output_bytes // 2, "total_size": plan.output_bytes}


def test_a_single_file_has_no_index(tmp_path):
    plan = two_model_plan(tmp_path, shard_bytes=10**9)
    assert [shard.file_name for shard in plan.shards] == ["model.safetensors"]
    assert index_json(plan.shards) is None


def test_config_keeps_unknown_keys_their_order_and_infinity():
    config = {"zeta": {"ü": [1, None]}, "alpha": float("inf"), "model_type": "x"}
    text = config_json(config).decode()
    assert json.loads(text) == config
    assert list(json.loads(text)) == list(config)
    assert "ü" in text
