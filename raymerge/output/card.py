"""The model card: metadata that the hub accepts, and nothing that says where files lay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.errors import StorageError
from raymerge.methods import all_methods
from raymerge.planning.nouns import Plan
from raymerge.recipe.emit import front_matter, shareable_recipe, to_yaml
from raymerge.storage import base_name, join_url, store_for

CARD_NAME = "README.md"
_MAX_CARD_BYTES = 4 * 2**20
_ARXIV = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")
_LICENSE_KEYS = ("license", "license_name", "license_link")


def model_card(plan: Plan, licenses: Sequence[dict[str, str]] = ()) -> str:
    """README.md of the output. `licenses` has one answer of `read_license` for each of the plan's models."""
    names = _public_names(plan.models)
    parts = [
        f"---\n{to_yaml(_metadata(plan, licenses))}---\n# Merged model\n",
        f"A merge of {len(plan.models)} models, made with raymerge.\n"
        if len(plan.models) > 1
        else "Made with raymerge.\n",
        "## Method\n",
        "\n".join(_method_lines(plan.methods)) + "\n",
        "## Models\n",
        "\n".join(_model_line(model, names, plan) for model in plan.models) + "\n",
        "## Recipe\n",
        _fenced("yaml", shareable_recipe(plan.recipe_text, _renamer(plan.models, names))),
    ]
    return "\n".join(parts)


def read_license(checkpoint: Checkpoint) -> dict[str, str]:
    """The license keys of a model's own card; empty where it says nothing that can be read."""
    if CARD_NAME not in checkpoint.side_files:
        return {}
    try:
        text = store_for(checkpoint.url).read(join_url(checkpoint.url, CARD_NAME), max_bytes=_MAX_CARD_BYTES)
    except StorageError:  # a card is optional: one that cannot be read says nothing
        return {}
    found = front_matter(text.decode("utf-8", "replace"))
    return {key: found[key] for key in _LICENSE_KEYS if isinstance(found.get(key), str)}


def _metadata(plan: Plan, licenses: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The keys of https://huggingface.co/docs/hub/model-cards; base models are hub ids only."""
    metadata: dict[str, Any] = {}
    parts = [part for model in plan.models for part in model.parts]
    hub_ids = list(dict.fromkeys(part.hub_id for part in parts if part.hub_id))
    if hub_ids:
        metadata |= {"base_model": hub_ids, "base_model_relation": "merge"}
    metadata["library_name"] = "transformers"
    if licenses and "license" in licenses[0] and all(each == licenses[0] for each in licenses):
        metadata |= licenses[0]
    return metadata | {"tags": ["mergekit", "merge"]}


def _method_lines(methods: Iterable[str]) -> Iterable[str]:
    known = all_methods()
    for name in methods:
        if name in known:
            source = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", known[name].source)
            yield f"- `{name}`: {known[name].summary}. {source}"


def _public_names(models: Iterable[Checkpoint]) -> dict[str, str]:
    """What each model and adapter may be called in public, by its url; local folders of one name are numbered."""
    names: dict[str, str] = {}
    for part in {part.url: part for model in models for part in model.parts}.values():
        name = part.hub_id or f"local: {base_name(part.url)}"
        if part.hub_id is None:
            count = sum(1 for other in names.values() if re.fullmatch(re.escape(name) + r"( \(\d+\))?", other))
            name = f"{name} ({count + 1})" if count else name
        names[part.url] = name
    return names


def _model_line(model: Checkpoint, names: dict[str, str], plan: Plan) -> str:
    is_base = plan.base is not None and model.reference == plan.base.reference
    text = "- " + " + ".join(_part_text(part, names) for part in model.parts)
    return f"{text} (base)" if is_base else text


def _part_text(part: Checkpoint, names: dict[str, str]) -> str:
    if part.hub_id is None:
        return names[part.url]
    at = f" at `{part.commit[:12]}`" if part.commit else ""
    return f"[{part.hub_id}](https://huggingface.co/{part.hub_id}){at}"


def _renamer(models: Iterable[Checkpoint], names: dict[str, str]) -> Callable[[str], str | None]:
    local = {
        model.reference: " + ".join(names[part.url] for part in model.parts)
        for model in models
        if any(part.hub_id is None for part in model.parts)
    }
    return local.get


def _fenced(language: str, text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
