"""The small files beside the weights that an output takes over from its donor, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any

from raymerge.checkpoint.layout import CONFIG_NAME
from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.strict_json import json_object
from raymerge.output.chat_template import TOKENIZER_CONFIG, apply_chat_template, choose_template, read_template
from raymerge.output.sentence_modules import MODULES_NAME, SENTENCE_CONFIGS, module_files
from raymerge.storage import join_url, store_for

_TOKENIZER = (
    "tokenizer*.json", "tokenizer*.model", "*.tiktoken", "*.model", "*.spm", "vocab*.json", "vocab*.txt", "vocab*.bpe",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "tekken.json", "spiece.model", "normalizer.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_OTHER = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "image_processor_config.json",
    "video_preprocessor_config.json", "feature_extractor_config.json",
)  # fmt: skip
_RELATIVE_IMPORT = re.compile(rb"^\s*from\s+\.(\w*)\s+import\s+([\w, ]+)", re.MULTILINE)
_MAX_FILE_BYTES = 256 * 2**20  # the largest tokenizer.json seen has 35 MB
_CONCURRENT_READS = 8


def tokenizer_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The files of its tokenizer, chat template included."""
    return _matching(checkpoint.side_files, _TOKENIZER)


def donor_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The other configs that say how to run the model, config.json and code not counted."""
    return _matching(checkpoint.side_files, (*_OTHER, *SENTENCE_CONFIGS))


def is_copied_name(name: str) -> bool:
    """Whether a file of that name can be in an output because it was beside an input's weights."""
    return bool(_matching((name,), (*_TOKENIZER, *_OTHER, *SENTENCE_CONFIGS)))


def read_files(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, bytes]:
    """The content of small files of a checkpoint, by name."""
    store = store_for(checkpoint.url)
    wanted = tuple(names)

    def read(name: str) -> bytes:
        return store.read(join_url(checkpoint.url, name), max_bytes=_MAX_FILE_BYTES)

    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        return dict(zip(wanted, pool.map(read, wanted), strict=True))


def code_files(checkpoint: Checkpoint, configs: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model's own code: files that `auto_map` names in config.json or `configs`, and what those import from beside
    them. It is copied and never run.
    """
    maps = [checkpoint.config.get("auto_map")]
    maps += [json_object(text, name).get("auto_map") for name, text in configs.items() if name.endswith(".json")]
    return _code_closure(
        {name for each in maps for name in _named_files(each)},
        set(checkpoint.side_files),
        lambda names: read_files(checkpoint, names),
    )


def copied_files(
    donor: Checkpoint,
    *,
    tokenizer_donor: Checkpoint | None = None,
    models: Iterable[Checkpoint] = (),
    chat_template: str | None = None,
    copy_tokenizer: bool = True,
    replaced: Mapping[str, bytes | None] = {},
) -> dict[str, bytes]:
    """Every file that an output takes over, in order of name, with the recipe's `chat_template` applied.

    The tokenizer comes from `tokenizer_donor`, which is `donor` if not given.

    `replaced` are contents that differ from the donors', None for a file that is left out; tokenizer files among them
    count only where those are copied. Custom code is included. `models` are the inputs, for `chat_template: auto`.
    Raises PlanError for a template that cannot be used.
    """
    tokenizer_donor = tokenizer_donor or donor
    files = read_files(donor, donor_names(donor))
    if MODULES_NAME in files:
        files |= module_files(donor, files[MODULES_NAME])
    if copy_tokenizer:
        files |= read_files(tokenizer_donor, tokenizer_names(tokenizer_donor))
    tokenizer_files = set(_matching(replaced, _TOKENIZER))
    for name, content in replaced.items():
        files.pop(name, None)
        if content is not None and (copy_tokenizer or name not in tokenizer_files):
            files[name] = content
    configs = {name: text for name, text in files.items() if name in (TOKENIZER_CONFIG, *_OTHER)}
    files |= code_files(donor, configs)
    if chat_template is not None:
        others = (model for model in models if model is not tokenizer_donor)
        template = choose_template(chat_template, [read_template(model) for model in (tokenizer_donor, *others)])
        files = apply_chat_template(files, template) if template is not None else files
    assert CONFIG_NAME not in files
    return dict(sorted(files.items()))


def _matching(names: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _named_files(auto_map: Any) -> Iterator[str]:
    """File names in an auto_map such as {"AutoModel": "modeling_x.Model", "AutoTokenizer": ["tok.Slow", null]}."""
    if not isinstance(auto_map, Mapping):
        return
    for value in auto_map.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and "." in each and "--" not in each:  # "org/repo--file.Class" lies elsewhere
                yield each.split(".", 1)[0] + ".py"


def _code_closure(
    wanted: set[str], present: set[str], read: Callable[[Iterable[str]], dict[str, bytes]]
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    while wanted:
        found |= read(sorted(wanted & present))
        imported = {name for text in found.values() for name in _imported_files(text)}
        wanted = (imported & present) - set(found)
    return found


def _imported_files(text: bytes) -> Iterator[str]:
    for module, names in _RELATIVE_IMPORT.findall(text):
        stems = [module] if module else [name.strip().split(b" ")[0] for name in names.split(b",")]
        yield from (stem.decode() + ".py" for stem in stems if stem)
