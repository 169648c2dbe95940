"""Whether transformers finds a place for every tensor: its own loader, given names and shapes without any bytes."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raymerge.checkpoint.layout import CONFIG_NAME
from raymerge.checkpoint.nouns import Checkpoint
from raymerge.errors import Problem, RaymergeError, UsageError, VerifyError
from raymerge.output.tokenizer import code_files
from raymerge.storage import redact

_NEEDED = ("transformers", "accelerate")
_SHOWN_NAMES = 10
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
# The loader converts between float types. Others it takes as they are: their width matters to no shape.
_TORCH_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFindings:
    """`checked` and `skipped` are phrases for the user; `problems` is empty where the model loads."""

    checked: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def require_loader() -> None:
    """Raises UsageError where the libraries that build models are not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            Problem(
                subject="--load",
                message=f"needs {' and '.join(missing)}, which merging does without: not installed",
                remedy="pip install 'raymerge[verify]'",
            )
        )


def check_load(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> LoadFindings:
    """Build the model of a checkpoint on the meta device and load it there as `from_pretrained` would, without a byte.

    Code that comes with the checkpoint (`auto_map` of its config.json) runs only with `trust_remote_code`.
    """
    if "quantization_config" in checkpoint.config:
        return LoadFindings(skipped=("building the model: its weights are quantized",))
    with tempfile.TemporaryDirectory(prefix="raymerge-load-") as folder, _silence():
        _write_config(checkpoint, Path(folder), with_code=trust_remote_code)
        try:
            cls, config = _model_class(checkpoint, folder, trust_remote_code=trust_remote_code)
            told = _load(cls, config, checkpoint)
        except RaymergeError as error:
            return LoadFindings(problems=error.problems)
        except Exception as error:  # noqa: BLE001 (configs, and code, of anyone's making)
            return LoadFindings(problems=(_failure(error, checkpoint),))
    name = f"{cls.__name__} of transformers {_version()}"
    problems = tuple(_misfits(told, cls.__name__, checkpoint.url))
    is_foreign = "auto_map" in checkpoint.config and not trust_remote_code
    return LoadFindings(
        checked=() if problems else (f"{len(checkpoint.tensors)} tensors fit {name} by name and shape",),
        skipped=(f"code named in auto_map of {CONFIG_NAME} (not run; {name} was built)",) if is_foreign else (),
        problems=problems,
    )


def _write_config(checkpoint: Checkpoint, folder: Path, *, with_code: bool) -> None:
    config = json.dumps(checkpoint.config)
    (folder / CONFIG_NAME).write_text(config, encoding="utf-8")
    code = code_files(checkpoint, {CONFIG_NAME: config.encode()}) if with_code else {}
    for name, data in code.items():
        (folder / name).write_bytes(data)


def _model_class(checkpoint: Checkpoint, folder: str, *, trust_remote_code: bool) -> tuple[Any, Any]:
    """The class that loads the model, and its config. Raises VerifyError where only the checkpoint's code could."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = checkpoint.config
    auto_map = config["auto_map"] if isinstance(config.get("auto_map"), Mapping) else {}
    names = [str(name) for name in config.get("architectures") or ()]
    if trust_remote_code and auto_map:
        return _custom_class(auto_map, names, folder)
    known = config.get("model_type") in CONFIG_MAPPING
    cls = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    if not known or (cls is None and names):
        raise VerifyError(_unknown(checkpoint, names, needs_code=bool(auto_map)))
    loaded = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if cls is None:
        auto: Any = transformers.AutoModel
        with torch.device("meta"):
            cls = type(auto.from_config(loaded, trust_remote_code=False))
    return cls, loaded


def _custom_class(auto_map: Mapping[str, Any], names: list[str], folder: str) -> tuple[Any, Any]:
    """Code of the checkpoint, run because the user said so."""
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    models = {key: str(entry) for key, entry in auto_map.items() if key.startswith("AutoModel")}
    wanted = [entry for entry in models.values() if entry.rpartition(".")[2] in names] or list(models.values())
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    if not wanted:
        return getattr(transformers, names[0]), config
    return get_class_from_dynamic_module(wanted[0], folder), config


def _unknown(checkpoint: Checkpoint, names: list[str], *, needs_code: bool) -> Problem:
    said = f"model_type {checkpoint.config.get('model_type')!r}, {', '.join(names) or 'no architectures'}"
    if needs_code:
        return Problem(
            subject=checkpoint.url,
            message=f"only code that comes with it could build it ({said}), and such code is never run unasked",
            remedy="read that code; --trust-remote-code runs it",
        )
    message = f"transformers {_version()} has no class for it ({said})"
    return Problem(subject=checkpoint.url, message=message, remedy="try a newer transformers")


def _load(cls: Any, config: Any, checkpoint: Checkpoint) -> Mapping[str, Iterable[Any]]:
    import torch

    tensors = {
        name: torch.empty(
            ref.spec.shape, dtype=getattr(torch, _TORCH_NAMES.get(ref.spec.dtype.value, "int8")), device="meta"
        )
        for name, ref in checkpoint.tensors.items()
    }
    _, told = cls.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told of, beside the others
    )
    return dict(told)


def _misfits(told: Mapping[str, Iterable[Any]], name: str, url: str) -> Iterator[Problem]:
    missing = sorted(str(each) for each in told.get("missing_keys", ()))
    unexpected = sorted(str(each) for each in told.get("unexpected_keys", ()))
    unlike = sorted(_shapes(each) for each in told.get("mismatched_keys", ()))
    if missing:
        remedy = "they would be filled with random values; check config.json and the inputs"
        yield Problem(subject=url, message=f"{name} misses {_shown(missing)}", remedy=remedy)
    if unexpected:
        remedy = "they would be left out; check config.json and the inputs"
        yield Problem(subject=url, message=f"{name} has no place for {_shown(unexpected)}", remedy=remedy)
    if unlike:
        remedy = "check the sizes in config.json"
        yield Problem(subject=url, message=f"{name} has other shapes for {_shown(unlike)}", remedy=remedy)
    for text in told.get("error_msgs", ()):
        yield Problem(subject=url, message=_first_line(str(text)))


def _shapes(told: Any) -> str:
    """A name, or with transformers 5 a name, the shape found and the one expected."""
    if isinstance(told, str):
        return told
    name, found, expected = told
    return f"{name} (found {list(found)}, expected {list(expected)})"


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _failure(error: Exception, checkpoint: Checkpoint) -> Problem:
    """The loader stacks tensors of one kind (experts), and stops where they differ without saying which."""
    odd = [*_gaps(checkpoint), *_odd_shapes(checkpoint)]
    if odd:
        message = f"the model cannot be built: {_shown(odd)}"
        return Problem(subject=checkpoint.url, message=message, remedy="check these tensors of the inputs")
    message = f"transformers {_version()} cannot build the model: {type(error).__name__}: {_first_line(str(error))}"
    return Problem(subject=checkpoint.url, message=message, remedy=f"check {CONFIG_NAME}")


def _odd_shapes(checkpoint: Checkpoint) -> Iterator[str]:
    """Tensors of other shapes than most of those whose names differ in numbers alone."""
    alike: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, ref in checkpoint.tensors.items():
        alike[_NUMBER.sub("N", name)][name] = ref.spec.shape
    for shapes in alike.values():
        usual, times = Counter(shapes.values()).most_common(1)[0]
        if times > len(shapes) / 2:
            for name, shape in shapes.items():
                if shape != usual:
                    yield f"{name} has shape {list(shape)}, others of its kind {list(usual)}"


def _gaps(checkpoint: Checkpoint) -> Iterator[str]:
    """Tensors that one of several numbered parts inside a layer lacks, where others have them."""
    parts: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    kinds: dict[str, set[str]] = defaultdict(set)
    for name in checkpoint.tensors:
        numbers = tuple(_NUMBER.findall(name))
        if len(numbers) > 1:
            place, _, suffix = _NUMBER.sub("{}", name).rpartition("{}")
            parts[place].add(numbers)
            kinds[place].add(suffix)
    for place, found in parts.items():
        for numbers in sorted(found):
            names = (place.format(*numbers[:-1]) + numbers[-1] + suffix for suffix in sorted(kinds[place]))
            yield from (f"{name} is missing" for name in names if name not in checkpoint.tensors)


def _first_line(text: str) -> str:
    return (redact(text).strip().splitlines() or [""])[0][:300]


def _version() -> str:
    import transformers

    return str(transformers.__version__)


@contextmanager
def _silence() -> Iterator[None]:
    """What the loader would print of its own accord is told as problems."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
