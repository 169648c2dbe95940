"""Layers are found from names and config alone, for every family."""

import pytest

from raymerge.planning.stack import Place, dissect, place

FAMILIES = {
    "llama": (
        ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.up.weight" for i in range(4))],
        {"num_hidden_layers": 4},
        {"model.layers": (4, 0)},
    ),
    "gpt2": ([f"transformer.h.{i}.attn.c_attn.weight" for i in range(3)], {"n_layer": 3}, {"transformer.h": (3, 0)}),
    "bare gpt2": ([f"h.{i}.attn.c_attn.weight" for i in range(3)], {"n_layer": 3}, {"h": (3, 0)}),
    "bert": (
        [f"bert.encoder.layer.{i}.output.dense.weight" for i in range(6)],
        {"num_hidden_layers": 6},
        {"bert.encoder.layer": (6, 0)},
    ),
    "experts are no layers": (
        [f"model.layers.{i}.mlp.experts.{j}.w1" for i in range(3) for j in range(8)],
        {"num_hidden_layers": 3, "n_routed_experts": 8},
        {"model.layers": (3, 0)},
    ),
    "next-n layer": (
        [f"model.layers.{i}.mlp.up.weight" for i in range(5)],
        {"num_hidden_layers": 4, "num_nextn_predict_layers": 1},
        {"model.layers": (4, 1)},
    ),
    "whisper": (
        [f"model.{side}.layers.{i}.fc1.weight" for side, n in (("encoder", 4), ("decoder", 2)) for i in range(n)],
        {"encoder_layers": 4, "decoder_layers": 2, "num_hidden_layers": 4},
        {"model.encoder.layers": (4, 0), "model.decoder.layers": (2, 0)},
    ),
    "t5": (
        [
            f"{side}.block.{i}.layer.0.SelfAttention.q.weight"
            for side, n in (("encoder", 4), ("decoder", 3))
            for i in range(n)
        ],
        {"num_layers": 4, "num_decoder_layers": 3},
        {"encoder.block": (4, 0), "decoder.block": (3, 0)},
    ),
    "multimodal": (
        [f"language_model.model.layers.{i}.mlp.up.weight" for i in range(4)]
        + [f"vision_tower.vision_model.encoder.layers.{i}.fc1.weight" for i in range(6)]
        + ["multi_modal_projector.0.weight", "multi_modal_projector.2.weight"],
        {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 6}},
        {"language_model.model.layers": (4, 0), "vision_tower.vision_model.encoder.layers": (6, 0)},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_stacks_of_families(family: str) -> None:
    names, config, expected = FAMILIES[family]
    stacks = dissect(names, config).stacks
    assert {stack.prefix: (stack.layer_count, stack.extra_count) for stack in stacks} == expected


def test_a_hole_in_the_numbers_is_no_stack() -> None:
    assert dissect(["model.layers.0.w", "model.layers.2.w"], {"num_hidden_layers": 3}).stacks == ()


def test_located_names_keep_index_and_suffix() -> None:
    anatomy = dissect(["model.layers.0.mlp.experts.7.w1", "model.norm.weight"], {"num_hidden_layers": 1})
    layer = anatomy.located["model.layers.0.mlp.experts.7.w1"]
    assert (layer.index, layer.suffix) == (0, ".mlp.experts.7.w1")
    assert "model.norm.weight" not in anatomy.located


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", Place.BEFORE),
        ("bert.embeddings.LayerNorm.weight", Place.BEFORE),
        ("transformer.wpe.weight", Place.BEFORE),
        ("model.norm.weight", Place.AFTER),
        ("lm_head.weight", Place.AFTER),
        ("embed_out.weight", Place.AFTER),
        ("bert.pooler.dense.weight", Place.AFTER),
        ("transformer.ln_f.bias", Place.AFTER),
        ("model.something.weight", Place.UNKNOWN),
    ],
)
def test_place(name: str, expected: Place) -> None:
    assert place(name) is expected
