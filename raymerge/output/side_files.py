"""Every small file of an output, made from the plan before the first shard is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from raymerge.checkpoint.layout import CONFIG_NAME
from raymerge.output.card import CARD_NAME, model_card, read_license
from raymerge.output.config import config_json
from raymerge.output.tokenizer import copied_files
from raymerge.planning.nouns import Plan
from raymerge.storage import redact

RECIPE_NAME = "mergekit_config.yml"  # the name that the hub's tools look for
_CONCURRENT_CARDS = 8


def side_files(plan: Plan, *, write_model_card: bool = True) -> dict[str, bytes]:
    """Content by file name: config.json, the donor's tokenizer and code, the recipe, the model card.

    The same plan and donor give the same bytes. Raises PlanError for a chat template that cannot be used, StorageError
    where the donor's files cannot be read.
    """
    files = copied_files(
        plan.donor,
        tokenizer_donor=plan.tokenizer_donor or plan.donor,
        models=plan.models,
        chat_template=plan.chat_template,
        copy_tokenizer=plan.copy_tokenizer,
        replaced=plan.vocabulary.files if plan.vocabulary is not None else {},
    )
    files[CONFIG_NAME] = config_json(plan.output_config)
    files[RECIPE_NAME] = _recipe(plan).encode()
    if write_model_card:
        with ThreadPoolExecutor(_CONCURRENT_CARDS) as pool:
            parts = {part.url: part for model in plan.models for part in model.parts}
            files[CARD_NAME] = model_card(plan, tuple(pool.map(read_license, parts.values()))).encode()
    return files


def _recipe(plan: Plan) -> str:
    """The recipe as written, but for credentials in the models' URLs."""
    text = plan.recipe_text
    for model in plan.models:
        if "://" in model.reference:
            text = text.replace(model.reference, redact(model.reference))
    return text
