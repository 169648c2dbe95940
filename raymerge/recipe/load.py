"""Where a recipe's text comes from, and the text to a checked `Recipe`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from raymerge.dtypes import DType
from raymerge.errors import Problem, RecipeError
from raymerge.recipe.assemble import assemble
from raymerge.recipe.document import MAX_BYTES, MAX_DEPTH, Document, Node, UnreadableError, join, paths, read_document
from raymerge.recipe.nouns import ModelReference, Recipe
from raymerge.recipe.report import MAX_PROBLEMS, Report, TooManyProblemsError
from raymerge.recipe.suggest import did_you_mean

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_ONE_LINE_YAML = re.compile(r"\s*(\{|[A-Za-z_]+:(\s|$))")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRecipe:
    """A recipe and everything wrong with its form, in the order of lines.

    Where there are problems, `recipe` is what could be saved: planning may go on with it to find more, never to run it.
    It is None where nothing can be planned. A missing method's name is "".
    """

    recipe: Recipe | None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def load_recipe(text: str) -> Recipe:
    """Raises RecipeError with every problem of the text."""
    parsed = parse_recipe(text)
    if parsed.problems or parsed.recipe is None:
        raise RecipeError(*parsed.problems)
    return parsed.recipe


def parse_recipe(text: str) -> ParsedRecipe:
    """Never raises: whatever is wrong with the text is a problem."""
    try:
        document = read_document(text)
    except UnreadableError as error:
        return ParsedRecipe(recipe=None, problems=(error.problem,))
    if not document.roots:
        problem = Problem(message="found no recipe, the document is empty", remedy="`raymerge methods ties --example`")
        return ParsedRecipe(recipe=None, problems=(*document.problems, problem))
    root = document.roots[0]
    report = Report()
    report.index(root, "")
    report.problems.extend(_with_paths(document.problems[:MAX_PROBLEMS], root))
    recipe = None
    try:
        _refuse_stages(document, report)
        recipe = assemble(root, text, report)
    except TooManyProblemsError:
        message = f"found more than {len(report.problems)} problems, the rest of the text is not read"
        report.problems.append(Problem(message=message, remedy="is this a recipe?"))
    problems = sorted(report.problems, key=lambda problem: problem.line or 0)
    return ParsedRecipe(recipe=recipe, problems=tuple(problems), warnings=tuple(report.warnings))


def read_recipe_text(config: str | Path | Mapping[str, Any], *, read_url: Callable[[str], str]) -> str:
    """The recipe's YAML text.

    `config` is a path, a URL (read by `read_url`), YAML text, or a mapping. A text of several lines is YAML; one line
    is a URL, else an existing file, else YAML if it starts like a mapping, else a file that is missing.
    Raises RecipeError naming the file, or whatever `read_url` raises.
    """
    if isinstance(config, Mapping):
        return yaml.safe_dump(_dumpable(config, "", 0), sort_keys=False, allow_unicode=True, width=120)
    if isinstance(config, Path):
        return _read_file(config)
    if not isinstance(config, str):
        found = type(config).__name__
        raise RecipeError(f"found a recipe of type {found}, expected a path, a URL, YAML text or a mapping")
    if "\n" in config:
        return config
    if _URL.fullmatch(config.strip()):
        return read_url(config.strip())
    if not config.strip():
        raise RecipeError("found an empty name, expected a recipe's path, URL or text")
    path = Path(config)
    if not _exists(path) and _ONE_LINE_YAML.match(config):
        return config
    return _read_file(path)


def _refuse_stages(document: Document, report: Report) -> None:
    for index, stage in enumerate(document.roots[1:], start=2):
        remedy = "run the stages one by one, each in a file of its own, with the earlier outputs as models"
        report.problem(
            stage, f"document {index}", "found a recipe of several stages, which is not supported yet", remedy
        )


def _with_paths(problems: tuple[Problem, ...], root: Node) -> list[Problem]:
    """Keys named by their full path, where the tree still holds them."""
    if not problems:
        return []
    at = {(node.line, path.rpartition(".")[2]): path for path, node in paths(root)}
    return [replace(each, subject=at.get((each.line or 0, each.subject), each.subject)) for each in problems]


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null character, or no home folder: no file has this name
        return False


def _read_file(path: Path) -> str:
    try:
        path = path.expanduser()
        if path.is_dir():
            raise RecipeError(Problem(subject=str(path), message="found a folder, expected a YAML file"))
        with path.open("rb") as file:
            data = file.read(MAX_BYTES * 4 + 1)  # no character takes more than 4 bytes
    except FileNotFoundError as error:
        remedy = _similar_file(path)
        raise RecipeError(Problem(subject=str(path), message="there is no such file", remedy=remedy)) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(Problem(subject=str(path), message=f"cannot be read: {reason}")) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"found byte 0x{data[error.start]:02x}, expected UTF-8 text"
        remedy = "save the file as UTF-8"
        raise RecipeError(Problem(subject=str(path), message=message, remedy=remedy, line=line)) from error


def _similar_file(path: Path) -> str:
    try:
        neighbours = [each.name for each in path.parent.iterdir() if each.suffix in (".yml", ".yaml")]
    except OSError:
        return f"the folder {path.parent} cannot be listed either" if not path.parent.exists() else ""
    return did_you_mean(path.name, neighbours)


def _dumpable(value: Any, path: str, depth: int) -> Any:
    """Fresh dicts, lists and scalars, so that the dump holds no alias."""
    if depth > MAX_DEPTH:
        raise RecipeError(Problem(subject=path[:80], message=f"found values nested more than {MAX_DEPTH} levels deep"))
    if isinstance(value, Mapping):
        return {str(key): _dumpable(child, join(path, str(key)), depth + 1) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_dumpable(child, f"{path}[{index}]", depth + 1) for index, child in enumerate(value)]
    if isinstance(value, DType):
        return value.recipe_name
    if isinstance(value, Enum):
        return _dumpable(value.value, path, depth + 1)
    if isinstance(value, (Path, ModelReference)):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    message = f"found a value of type {type(value).__name__}, expected text, numbers, lists and mappings"
    raise RecipeError(Problem(subject=path, message=message))
