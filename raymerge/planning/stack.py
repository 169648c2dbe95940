"""Finding layers in tensor names: which names are numbered layers, and what stands before and after them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raymerge.checkpoint.config import Tower, towers


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layers `prefix.0` to `prefix.{layer_count - 1}`.

    `extra_count` layers numbered from `layer_count` on are no part of the stack: next-token prediction heads (MTP) are
    stored that way. `config_path` is where config.json keeps the count.
    """

    prefix: str
    layer_count: int
    extra_count: int
    config_path: tuple[str, ...]


class Place(Enum):
    """Where a tensor outside the stack stands in the order of computation."""

    BEFORE = "before"
    AFTER = "after"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerName:
    """A tensor name taken apart: layer `index` of `stack`, and what follows the number (".mlp.up_proj.weight")."""

    stack: Stack
    index: int
    suffix: str

    @property
    def is_extra(self) -> bool:
        return self.index >= self.stack.layer_count


# MTP heads seen so far: DeepSeek-V3 has 1, MiMo 1 to 3. With more extra layers the config is of another model.
_MOST_EXTRA_LAYERS = 8

# The outermost number in a dotted name: "model.layers.3.mlp.experts.7.w1" is layer 3 of "model.layers". No model has a
# billion layers, and Python refuses to read a number of thousands of digits.
_NUMBERED = re.compile(r"^(.*?)\.?(?<![^.])(\d{1,9})(|\..*)$", re.ASCII | re.DOTALL)

HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")

_AFTER = re.compile(
    r"(^|\.)(lm_head|embed_out|score|classifier|cls|pooler|qa_outputs|output_layer|head|mtp|"
    r"norm|ln_f|norm_f|final_norm|final_layernorm|final_layer_norm|ln_post|post_layernorm|layer_norm|layernorm_post)(\.|$)"
)
_BEFORE = re.compile(
    r"(^|\.)(embed_tokens|embed_in|embed_positions|embed_layer_norm|embeddings?|embeddings_project|wte|wpe|word_embeddings|"
    r"word_embeddings_layernorm|shared|tok_embeddings|patch_embed\w*|pos_embed\w*|ln_pre|pre_layrnorm|conv1|conv2|"
    r"project_in|rotary_emb|rotary_pos_emb|relative_attention_bias|layernorm_embedding|token_type_embeddings|"
    r"vision_\w+|visual|audio_\w+|multi_modal_projector|mm_projector|image_newline)(\.|$)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A checkpoint's names sorted into stacks.

    `located` holds every name that is in a layer, `suffixes` what follows the number in the names of one layer (by its
    stack's prefix and its index, extra layers included); both in file order.
    """

    stacks: tuple[Stack, ...]
    located: Mapping[str, LayerName]
    suffixes: Mapping[tuple[str, int], tuple[str, ...]]


def dissect(names: Iterable[str], config: Mapping[str, Any]) -> Anatomy:
    """Find the stacks: numbered groups of names that hold every index 0..n-1, n a layer count of config.json."""
    split = {name: found for name in names if (found := _NUMBERED.match(name)) is not None}
    indices: dict[str, set[int]] = defaultdict(set)
    for found in split.values():
        indices[found[1]].add(int(found[2]))
    known = towers(config)
    stacks = {group: _stack_of(group, members, known) for group, members in indices.items()}
    located = {}
    suffixes: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, found in split.items():
        stack = stacks[found[1]]
        if stack is not None:
            index = int(found[2])
            located[name] = LayerName(stack=stack, index=index, suffix=found[3])
            suffixes[stack.prefix, index].append(found[3])
    return Anatomy(
        stacks=tuple(stack for stack in stacks.values() if stack is not None),
        located=located,
        suffixes={layer: tuple(found) for layer, found in suffixes.items()},
    )


def place(name: str) -> Place:
    """Whether a name outside the stack is computed before or after the layers; embeddings' own norms stand before."""
    after, before = _AFTER.search(name), _BEFORE.search(name)
    if before and (not after or before.start() < after.start()):
        return Place.BEFORE
    return Place.AFTER if after else Place.UNKNOWN


def _stack_of(group: str, members: set[int], known: tuple[Tower, ...]) -> Stack | None:
    held = len(members)
    if members != set(range(held)):
        return None
    fitting = [tower for tower in known if _same_kind(group, tower.path) and held - tower.layer_count >= 0]
    tower = max(
        fitting, key=lambda tower: (sides(group) == sides(".".join(tower.path)), tower.layer_count), default=None
    )
    if tower is None or tower.layer_count == 0 or held - tower.layer_count > _MOST_EXTRA_LAYERS:
        return None
    return Stack(
        prefix=group, layer_count=tower.layer_count, extra_count=held - tower.layer_count, config_path=tower.path
    )


_KINDS = ("vision", "visual", "audio", "speech", "encoder", "decoder")
_SAME = {"visual": "vision", "speech": "audio"}


def _same_kind(group: str, path: tuple[str, ...]) -> bool:
    """Whether a group of names and a config key speak of the same tower: a vision count never numbers text layers."""
    of_group = {_SAME.get(kind, kind) for kind in _KINDS if kind in group}
    of_path = {_SAME.get(kind, kind) for kind in _KINDS if kind in ".".join(path)}
    for kind in ("vision", "audio"):
        if (kind in of_group) != (kind in of_path):
            return False
    of_names, of_config = sides(group), sides(".".join(path))
    return not (of_names and of_config) or bool(of_names & of_config)


def sides(text: str) -> set[str]:
    return {side for side in ("encoder", "decoder") if side in text}


def layer_name(prefix: str, index: int) -> str:
    """What the names of a layer begin with; some models are their layers, without a prefix."""
    return f"{prefix}.{index}" if prefix else str(index)


def is_sensory(prefix: str) -> bool:
    """Whether a stack's prefix is of a vision or audio tower."""
    return any(kind in prefix for kind in ("vision", "visual", "audio", "speech"))
