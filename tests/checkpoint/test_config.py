"""config.json keys: towers found, layers cut, types set. Excerpts are of published configs."""

from __future__ import annotations

import json

import pytest

from raymerge.checkpoint.config import (
    hidden_sizes,
    layer_doubts,
    set_dtype,
    tie_word_embeddings,
    towers,
    vocab_size,
    with_layers,
)
from raymerge.dtypes import DType
from raymerge.errors import CheckpointError

TOWERS = {
    "llama": ({"num_hidden_layers": 32, "hidden_size": 4096}, {("num_hidden_layers",): 32}),
    "gpt2": ({"n_layer": 12, "n_embd": 768}, {("n_layer",): 12}),
    "mpt": ({"n_layers": 32, "d_model": 4096}, {("n_layers",): 32}),
    "two spellings": ({"n_layer": 12, "num_hidden_layers": 12}, {("num_hidden_layers",): 12}),
    "t5": ({"num_layers": 6, "num_decoder_layers": 4}, {("num_layers",): 6, ("num_decoder_layers",): 4}),
    "whisper": (
        {"encoder_layers": 4, "decoder_layers": 2, "num_hidden_layers": 4},
        {("encoder_layers",): 4, ("decoder_layers",): 2},
    ),
    "gemma3": (
        {"text_config": {"num_hidden_layers": 34}, "vision_config": {"num_hidden_layers": 27}},
        {("text_config", "num_hidden_layers"): 34, ("vision_config", "num_hidden_layers"): 27},
    ),
    "qwen2-vl": (
        {"num_hidden_layers": 28, "vision_config": {"depth": 32, "embed_dim": 1280}},
        {("num_hidden_layers",): 28, ("vision_config", "depth"): 32},
    ),
    "omni": (
        {"thinker_config": {"text_config": {"num_hidden_layers": 28}, "audio_config": {"encoder_layers": 32}}},
        {
            ("thinker_config", "text_config", "num_hidden_layers"): 28,
            ("thinker_config", "audio_config", "encoder_layers"): 32,
        },
    ),
    "nothing": ({"rope_scaling": {"num_layers": 3}, "num_layers": True, "n_layer": "12"}, {}),
}


@pytest.mark.parametrize("case", TOWERS)
def test_towers_are_found_by_their_keys(case):
    config, expected = TOWERS[case]
    assert {tower.path: tower.layer_count for tower in towers(config)} == expected


def test_sizes_are_read_beside_the_count():
    config = {
        "vision_config": {"hidden_size": 8, "depth": 2},
        "text_config": {"vocab_size": 99, "n_embd": 16, "n_layer": 3},
    }
    assert hidden_sizes(config) == {("vision_config",): 8, ("text_config",): 16}
    assert vocab_size(config) == 99
    assert [(tower.hidden_size, tower.vocab_size) for tower in towers(config)] == [(8, None), (16, 99)]


def test_tied_embeddings_are_told_only_where_the_config_does():
    assert tie_word_embeddings({}) is None
    assert tie_word_embeddings({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}) is False
    assert tie_word_embeddings({"text_config": {"tie_word_embeddings": True}}) is True


KEPT = (0, 1, 2, 1, 2, 3)  # of 4 layers
CUTS = {
    # name: (value for 4 layers, value for the kept ones)
    "layer_types": (["a", "b", "c", "d"], ["a", "b", "c", "b", "c", "d"]),
    "layers_block_type": (["m", "m", "m", "h"], ["m", "m", "m", "m", "m", "h"]),
    "sliding_window_pattern": ([1, 0, 1, 0], [1, 0, 1, 0, 1, 0]),
    "no_rope_layers": ([1, 1, 1, 0], [1, 1, 1, 1, 1, 0]),
    "moe_layer_freq": ([0, 1, 1, 1], [0, 1, 1, 1, 1, 1]),
    "num_key_value_heads": ([1, 2, 3, 4], [1, 2, 3, 2, 3, 4]),
    "attn_layer_indices": ([1, 3], [1, 3, 5]),
    "full_attn_idxs": ([2], [2, 4]),
    "mlp_only_layers": ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5]),
    "cross_attention_layers": ([], []),
    "hybrid_override_pattern": ("M-*M", "M-*-*M"),
    "attention_types": ([[["global", "local"], 2]], [[["global", "local", "global", "local", "global", "local"], 1]]),
    "first_k_dense_replace": (1, 1),
    "max_window_layers": (4, 6),
    "num_kv_shared_layers": (1, 1),
    "num_nextn_predict_layers": (1, 0),
    "never_heard_of": ([5, 6, 7, 8], [5, 6, 7, 6, 7, 8]),
    "eos_token_id": ([1, 2, 3, 4], [1, 2, 3, 4]),
    "architectures": (["A", "B", "C", "D"], ["A", "B", "C", "D"]),
    "image_mean": ([1, 1, 1, 1], [1, 1, 1, 1]),
    "short_list": ([1, 2, 3], [1, 2, 3]),
    "vocab_size": (4, 4),
    "unknown": ({"deep": [None]}, {"deep": [None]}),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", CUTS)
def test_what_speaks_of_layers_is_cut_and_the_rest_is_kept(name, nested):
    before, after = CUTS[name]
    section = {"num_hidden_layers": 4, name: before}
    config = {"text_config": section, "other": 4} if nested else section
    path = ("text_config", "num_hidden_layers") if nested else ("num_hidden_layers",)
    untouched = json.dumps(config)
    result = with_layers(config, path, KEPT)
    assert (result["text_config"] if nested else result) == {"num_hidden_layers": 6, name: after}
    assert json.dumps(config) == untouched


def test_entries_of_next_n_layers_behind_the_stack_are_dropped():
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "layer_types": ["a", "b", "c", "mtp"]}
    assert with_layers(config, ("num_hidden_layers",), (0, 2))["layer_types"] == ["a", "c"]


def test_every_spelling_of_the_count_changes_and_no_other_tower():
    config = {
        "num_hidden_layers": 4,
        "text_config": {"num_hidden_layers": 4, "n_layer": 4},
        "vision_config": {"num_hidden_layers": 4, "layer_types": ["x"] * 4},
    }
    result = with_layers(config, ("text_config", "num_hidden_layers"), (0, 1))
    assert result["num_hidden_layers"] == 2
    assert result["text_config"] == {"num_hidden_layers": 2, "n_layer": 2}
    assert result["vision_config"] == config["vision_config"]


def test_encoder_and_decoder_are_cut_apart():
    config = {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4}
    assert with_layers(config, ("decoder_layers",), (0,)) == {**config, "decoder_layers": 1}
    assert with_layers(config, ("encoder_layers",), (0,)) == {**config, "encoder_layers": 1, "num_hidden_layers": 1}
    t5 = {"num_layers": 4, "num_decoder_layers": 4}
    assert with_layers(t5, ("num_decoder_layers",), (0, 0)) == {"num_layers": 4, "num_decoder_layers": 2}


def test_layers_of_a_deeper_model_take_the_last_entry_with_a_warning():
    config = {"num_hidden_layers": 2, "layer_types": ["a", "b"], "rope_theta": 1, "eos_token_id": [1, 2]}
    path = ("num_hidden_layers",)
    assert with_layers(config, path, (0, 1, 5))["layer_types"] == ["a", "b", "b"]
    assert [problem.subject for problem in layer_doubts(config, path, (0, 1, 5))] == ["config.json layer_types"]


def test_a_count_that_another_model_spells_otherwise_is_refused():
    with pytest.raises(CheckpointError, match="no layer count at text_config"):
        with_layers({"n_layer": 2}, ("text_config", "num_hidden_layers"), (0,))


def test_all_layers_kept_is_the_identity_but_for_next_n_layers():
    config = {"num_hidden_layers": 4} | {name: before for name, (before, _) in CUTS.items()}
    del config["num_nextn_predict_layers"]
    del config["attention_types"]  # said in another way
    assert with_layers(config, ("num_hidden_layers",), range(4)) == config
    assert layer_doubts(config, ("num_hidden_layers",), range(4)) == ()


DOUBTS = {
    "dense layers apart": ({"first_k_dense_replace": 1}, (0, 1, 0, 1), "first_k_dense_replace"),
    "dense layers together": ({"first_k_dense_replace": 1}, (0, 0, 1, 2), None),
    "window off": ({"max_window_layers": 2, "use_sliding_window": False}, KEPT, None),
    "window on": ({"max_window_layers": 2, "use_sliding_window": True}, KEPT, "max_window_layers"),
    "shared tail broken": ({"num_kv_shared_layers": 2}, KEPT, "num_kv_shared_layers"),
    "period kept": ({"attn_layer_period": 2}, (0, 1, 0, 1, 2, 3), None),
    "period broken": ({"attn_layer_period": 2}, (0, 1, 1, 2), "attn_layer_period"),
    "period of one": ({"decoder_sparse_step": 1}, (0, 1, 1, 2), None),
    "types tell": ({"full_attention_interval": 4, "layer_types": ["x"] * 4}, KEPT, None),
    "types tell not of experts": ({"decoder_sparse_step": 2, "layer_types": ["x"] * 4}, (1, 2), "decoder_sparse_step"),
    "gemma2": ({"model_type": "gemma2"}, (1, 2), "model_type"),
    "gemma2 with types": ({"model_type": "gemma2", "layer_types": ["x"] * 4}, (1, 2), None),
    "numbers from the end": ({"attn_layer_indices": [-1]}, KEPT, "attn_layer_indices"),
    "too few types": ({"layer_types": ["x", "y"]}, KEPT, "layer_types"),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_what_cannot_be_kept_is_a_warning_naming_the_key(case):
    keys, kept, expected = DOUBTS[case]
    problems = layer_doubts(
        {"text_config": {"num_hidden_layers": 4, **keys}}, ("text_config", "num_hidden_layers"), kept
    )
    assert [problem.subject for problem in problems] == ([f"config.json text_config.{expected}"] if expected else [])


def test_type_is_set_in_the_spelling_that_is_there():
    assert set_dtype({"a": 1, "dtype": "float32"}, DType.BF16) == {"a": 1, "dtype": "bfloat16"}
    assert set_dtype({"torch_dtype": None}, DType.F16) == {"torch_dtype": "float16"}
    assert set_dtype({"a": 1}, DType.F32) == {"a": 1, "torch_dtype": "float32"}
    nested = {
        "dtype": "bfloat16",
        "text_config": {"dtype": "float16"},
        "vision_config": {"dtype": "float32"},
        "audio_config": {"torch_dtype": "bfloat16"},
        "quantization_config": {"dtype": "int8"},
    }
    assert set_dtype(nested, DType.F16) == {
        "dtype": "float16",
        "text_config": {"dtype": "float16"},
        "vision_config": {"dtype": "float32"},
        "audio_config": {"torch_dtype": "float16"},
        "quantization_config": {"dtype": "int8"},
    }
    assert set_dtype({"text_config": {"torch_dtype": "bfloat16"}}, DType.F16) == {
        "text_config": {"torch_dtype": "float16"}
    }
