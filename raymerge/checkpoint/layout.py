"""Which files of a folder are the model's weights, from their names and the index alone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from raymerge.checkpoint.strict_json import json_object
from raymerge.errors import CheckpointError, Problem

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
_SAFETENSORS = ".safetensors"
_ADAPTER_WEIGHTS = (ADAPTER_WEIGHTS_NAME,)
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz", ".pdparams")
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.(?:safetensors|bin)")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How the weight files of a format are named. Of `suffix` other files may be, those that `pattern` leaves out."""

    name: str
    suffix: str
    pattern: re.Pattern[str]
    single_name: str
    index_name: str

    def files(self, names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if self.pattern.fullmatch(name) and name not in _ADAPTER_WEIGHTS)


SAFETENSORS = WeightFormat(
    name="safetensors",
    suffix=_SAFETENSORS,
    pattern=re.compile(r".*\.safetensors", re.DOTALL),
    single_name=SINGLE_NAME,
    index_name=INDEX_NAME,
)
# Files of other names (training_args.bin, optimizer.bin) hold no model.
PICKLES = WeightFormat(
    name="PyTorch",
    suffix=".bin",
    pattern=re.compile(r"pytorch_model(-\d{5,}-of-\d{5,})?\.bin"),
    single_name="pytorch_model.bin",
    index_name="pytorch_model.bin.index.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayout:
    """The weight files in the order of their tensors. `weight_map` is the index, file by tensor; None without one."""

    format: WeightFormat
    file_names: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None
    notes: tuple[str, ...] = field(default=())


def weight_format(names: Iterable[str]) -> WeightFormat:
    """Safetensors where there are any, as transformers prefers them; else pickles, if those are there."""
    present = tuple(names)
    has_pickles = PICKLES.index_name in present or bool(PICKLES.files(present))
    return PICKLES if has_pickles and INDEX_NAME not in present and not SAFETENSORS.files(present) else SAFETENSORS


def weight_layout(names: Sequence[str], index: bytes | None, *, display: str) -> WeightLayout:
    """Choose the weight files among `names`, those directly in the folder; `index` is the text of their format's index.

    Where a `model.safetensors` lies beside an index that does not list it, it wins: transformers loads it first.
    """
    form = weight_format(names)
    weights, single = form.files(names), form.single_name
    weight_map = _weight_map(index, form, display=display) if index is not None else None
    if weight_map is not None and single in weights and single not in weight_map.values():
        note = f"{single} is used, as transformers does; the index beside it and its files are not"
        return WeightLayout(format=form, file_names=(single,), notes=(note,))
    if weight_map is not None:
        listed = tuple(sorted(set(weight_map.values())))
        notes = _unused(weights, listed, "in the index")
        return WeightLayout(format=form, file_names=listed, weight_map=weight_map, notes=notes)
    if single in weights:
        return WeightLayout(format=form, file_names=(single,), notes=_unused(weights, (single,), single))
    if weights:
        _check_numbers(weights, form, display=display)
        return WeightLayout(format=form, file_names=tuple(weights))
    raise CheckpointError(_nothing_to_read(names, display=display))


def side_files(names: Sequence[str]) -> tuple[str, ...]:
    """The files that are no weights: configs, tokenizer, code, texts."""
    return tuple(sorted(name for name in names if not _is_weights(name) and not name.endswith(".index.json")))


def adapter_problem(*, display: str) -> Problem:
    return Problem(
        subject=display,
        message=f"is an adapter ({ADAPTER_CONFIG_NAME}), not a model",
        remedy=f"name it behind its base model: BASE+{display}",
    )


def _nothing_to_read(names: Sequence[str], *, display: str) -> Problem:
    """What a folder without safetensors weights holds instead, and what to do about it."""
    others = sorted(name for name in names if name.endswith(_OTHER_WEIGHTS))
    if ADAPTER_CONFIG_NAME in names:
        return adapter_problem(display=display)
    if not others:
        return Problem(
            subject=display,
            message="holds no weights: no *.safetensors and no pytorch_model*.bin",
            remedy="check the path; a download may be incomplete",
        )
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return Problem(
        subject=display,
        message=f"holds {others[0]}{more}; only *.safetensors and pytorch_model*.bin can be merged",
        remedy="convert it: AutoModel.from_pretrained(...).save_pretrained(folder) writes safetensors",
    )


def _is_weights(name: str) -> bool:
    return name.endswith((_SAFETENSORS, *_OTHER_WEIGHTS))


def _weight_map(index: bytes, form: WeightFormat, *, display: str) -> dict[str, str]:
    subject = f"{display}/{form.index_name}"
    weight_map = json_object(index, subject).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            Problem(subject=subject, message="has no weight_map from tensor to file", remedy="download it again")
        )
    for tensor, file_name in weight_map.items():
        fault = _file_name_fault(file_name, form)
        if fault:
            raise CheckpointError(
                Problem(
                    subject=subject,
                    message=f"tensor {tensor!r} lies in {file_name!r}, which is {fault}",
                    remedy=f"expected the name of a {form.name} file in the same folder",
                )
            )
    return weight_map


def _file_name_fault(file_name: object, form: WeightFormat) -> str:
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        return "no file name"
    path = PurePosixPath(file_name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in file_name:
        return "outside the folder"
    if len(path.parts) > 1:
        return "in another folder"
    return "" if file_name.endswith(form.suffix) else f"no {form.name} file"


def _unused(weights: Sequence[str], used: Sequence[str], where: str) -> tuple[str, ...]:
    unused = [name for name in weights if name not in used]
    return (f"not read, since not {where}: {', '.join(unused)}",) if unused else ()


def _check_numbers(weights: Sequence[str], form: WeightFormat, *, display: str) -> None:
    """Without an index only the numbers in the names tell that a shard is missing."""
    matches = [match for match in map(_NUMBERED.fullmatch, weights) if match]
    families = {(match["stem"], match["count"]) for match in matches}
    for stem, count in sorted(families):
        present = {int(match["number"]) for match in matches if (match["stem"], match["count"]) == (stem, count)}
        missing_count = int(count) - len(present)
        if missing_count > 0:
            first = next(number for number in itertools.count(min(1, *present)) if number not in present)
            name = f"{stem}-{first:0{len(count)}d}-of-{count}{form.suffix}"
            more = f" and {missing_count - 1} more" if missing_count > 1 else ""
            raise CheckpointError(
                Problem(
                    subject=display, message=f"lacks {name}{more}, and has no index", remedy="complete the download"
                )
            )
