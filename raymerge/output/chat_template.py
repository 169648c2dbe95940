"""The chat template of an output: which one, whether it compiles, and every file that has to say so.

transformers 5 reads `chat_template.jinja`; before 4.50 or so it read only the key in tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.strict_json import json_object
from raymerge.errors import PlanError, Problem
from raymerge.output.builtin_templates import BUILTIN_TEMPLATES
from raymerge.recipe.suggest import did_you_mean
from raymerge.storage import join_url, store_for

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

AUTO = "auto"
TEMPLATE_FILE = "chat_template.jinja"
LEGACY_TEMPLATE_FILE = "chat_template.json"  # of processors; transformers prefers the .jinja file
TOKENIZER_CONFIG = "tokenizer_config.json"
_SUBJECT = "chat_template"
_TEMPLATE_FILES = (TEMPLATE_FILE, LEGACY_TEMPLATE_FILE, TOKENIZER_CONFIG)
_MAX_FILE_BYTES = 64 * 2**20


def template_in(files: Mapping[str, bytes], *, display: str) -> str | None:
    """The template that transformers would use of these files. Of several named ones it is the default."""
    if TEMPLATE_FILE in files:
        return files[TEMPLATE_FILE].decode("utf-8", "replace")
    for name in (LEGACY_TEMPLATE_FILE, TOKENIZER_CONFIG):
        if name in files:
            template = _template_of(json_object(files[name], f"{display}/{name}").get("chat_template"))
            if template is not None:
                return template
    return None


def read_template(checkpoint: Checkpoint) -> str | None:
    """The chat template in a checkpoint's folder."""
    store = store_for(checkpoint.url)
    names = [name for name in _TEMPLATE_FILES if name in checkpoint.side_files]
    files = {name: store.read(join_url(checkpoint.url, name), max_bytes=_MAX_FILE_BYTES) for name in names}
    return template_in(files, display=checkpoint.reference)


def choose_template(setting: str, templates: Sequence[str | None]) -> str | None:
    """The template that the recipe's `chat_template` asks for; `templates` are the inputs', the donor's first.

    `auto` is the most common one, the earlier among equals; None where no input has any. Raises PlanError for a name
    that is not built in and for a text that does not compile.
    """
    if setting == AUTO:
        present = [template for template in templates if template is not None]
        return max(present, key=present.count, default=None)
    if setting in BUILTIN_TEMPLATES:
        return BUILTIN_TEMPLATES[setting]
    if "{{" not in setting and "{%" not in setting:
        known = (AUTO, *BUILTIN_TEMPLATES)
        remedy = did_you_mean(setting, known) or f"expected {', '.join(known)} or a Jinja2 template"
        raise PlanError(Problem(subject=_SUBJECT, message=f"found {setting[:60]!r}", remedy=remedy))
    check_template(setting)
    return setting


def check_template(template: str) -> None:
    """Raise PlanError unless `template` compiles in the sandbox that transformers renders chats in. Nothing runs."""
    from jinja2 import TemplateError

    try:
        _environment().from_string(template)
    except (TemplateError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        place = f" in line {line} of it" if line else ""
        raise PlanError(
            Problem(subject=_SUBJECT, message=f"does not compile{place}: {error}", remedy="expected a Jinja2 template")
        ) from error


def apply_chat_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """`files` with `template` in each place that some version of transformers reads."""
    changed = {name: content for name, content in files.items() if name != LEGACY_TEMPLATE_FILE}
    changed[TEMPLATE_FILE] = template.encode()
    if TOKENIZER_CONFIG in changed:
        config = json_object(changed[TOKENIZER_CONFIG], TOKENIZER_CONFIG) | {"chat_template": template}
        changed[TOKENIZER_CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return changed


def missing_template_warning(donor: Checkpoint, models: Sequence[Checkpoint]) -> Problem | None:
    """A warning where the donor has no chat template while another input has one; the recipe sets none."""
    if read_template(donor) is not None:
        return None
    other = next((model for model in models if model is not donor and read_template(model) is not None), None)
    if other is None:
        return None
    return Problem(
        subject="tokenizer",
        message=f"its files come from {donor.reference}, which has no chat template; {other.reference} has one",
        remedy=f"chat_template: {AUTO}",
    )


def _template_of(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    named = {each.get("name"): each.get("template") for each in value if isinstance(each, Mapping)}
    template = named.get("default")
    return template if isinstance(template, str) else None


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks what the assistant said, for training; it changes no output."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
