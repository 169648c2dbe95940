"""YAML text to a tree of nodes that know their lines, within limits that no honest recipe reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from raymerge.errors import Problem
from raymerge.recipe.nouns import Scalar

# The largest recipes in public model cards (one slice per layer, one gradient per projection) have some 10,000 nodes,
# 200 KB and depth 8. Nodes are counted after aliases are expanded, which is what makes a "YAML bomb" large.
MAX_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 16
_MAX_NUMBER = 400  # characters; float64 has at most 309 digits, and longer ones take quadratic time to convert
_MAX_SHOWN = 80  # characters of a key in a path: a long one, below many aliases, would fill the memory with paths

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SCALAR_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))
_MERGE_KEY = "<<"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A value of the document.

    `line` is 1-based: of the key for a mapping's values, of the item for a list's. `text` is a scalar as written,
    without quotes. `size` counts the nodes inside, aliases expanded; `height` the levels.
    """

    value: Scalar | tuple[Node, ...] | Mapping[str, Node] | None
    line: int
    text: str = ""
    size: int = 1
    height: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The non-empty documents of a text, and what is wrong with their keys and tags."""

    roots: tuple[Node, ...]
    problems: tuple[Problem, ...]


class UnreadableError(Exception):
    """The text is no YAML, or too large to be a recipe: there is no tree to go on with."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def read_document(text: str) -> Document:
    """Raises UnreadableError."""
    text = text.removeprefix("\ufeff")
    _check_text(text)
    # The C parser gives the same events some ten times faster; wheels carry it, a source build may not.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    composer = _Composer(loader=loader)
    try:
        while loader.check_event():
            composer.take(loader.get_event())
    except yaml.YAMLError as error:
        raise UnreadableError(_syntax_problem(error, text)) from error
    finally:
        loader.dispose()
    roots = tuple(root for root in composer.roots if root.value is not None)
    return Document(roots=roots, problems=tuple(composer.problems))


def plain(node: Node) -> Any:
    """The node as dicts, lists and scalars."""
    if isinstance(node.value, tuple):
        return [plain(item) for item in node.value]
    if isinstance(node.value, Mapping):
        return {key: plain(child) for key, child in node.value.items()}
    return node.value


def paths(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node below `node` with its key path ("models[1].parameters.weight"), parents first."""
    if isinstance(node.value, tuple):
        children = [(f"{path}[{index}]", item) for index, item in enumerate(node.value)]
    elif isinstance(node.value, Mapping):
        children = [(join(path, key), child) for key, child in node.value.items()]
    else:
        return
    for child_path, child in children:
        yield child_path, child
        yield from paths(child, child_path)


def join(path: str, key: str) -> str:
    """The path of `key` in the mapping at `path`. Very long keys are cut."""
    if len(key) > _MAX_SHOWN:
        key = f"{key[: _MAX_SHOWN - 3]}..."
    return f"{path}.{key}" if path else key


def _check_text(text: str) -> None:
    if len(text) > MAX_BYTES:
        message = f"found {len(text):,} characters, a recipe has at most {MAX_BYTES:,}"
        raise UnreadableError(Problem(message=message, remedy="is this the file you meant?"))
    found = _NOT_TEXT.search(text)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        message = f"found the character U+{ord(found.group()):04X}, which YAML does not allow"
        raise UnreadableError(Problem(message=message, line=line, remedy="remove it, or save the file as plain UTF-8"))


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    line = mark.line + 1 if mark is not None else None
    remedy = "check the indentation, colons and quotes of this line and the one before"
    lines = text.splitlines()
    if line is not None and line <= len(lines) and "\t" in lines[line - 1]:
        remedy = "indent with spaces: YAML does not allow tabs"
    return Problem(message=f"not YAML: {what}", line=line, remedy=remedy)


@dataclass(slots=True, kw_only=True)
class _Frame:
    """A list or mapping whose end has not been seen; a mapping's children are keys and values in turn."""

    is_mapping: bool
    line: int
    anchor: str | None
    children: list[Node] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Composer:
    """Builds trees from parser events. Works on a stack of its own, so that no nesting can exhaust Python's."""

    loader: Any
    roots: list[Node] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    stack: list[_Frame] = field(default_factory=list)
    anchors: dict[str, Node | None] = field(default_factory=dict)
    node_count: int = 0

    def take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self.anchors.clear()
        elif isinstance(event, yaml.AliasEvent):
            self.add(self.aliased(event.anchor, line))
        elif isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event, line)
            self.define(event.anchor, node)
            self.add(node)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.open(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            frame = self.stack.pop()
            node = self.mapping(frame) if frame.is_mapping else _sequence(frame)
            self.define(frame.anchor, node)
            self.add(node)

    def open(self, event: Any, line: int) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        tag = f"tag:yaml.org,2002:{'map' if is_mapping else 'seq'}"
        if event.tag not in (None, "!", tag):
            self.refuse_tag(event.tag, line)
        self.define(event.anchor, None)
        self.count(1, line)
        self.stack.append(_Frame(is_mapping=is_mapping, line=line, anchor=event.anchor))
        self.check_depth(len(self.stack), line)

    def add(self, node: Node) -> None:
        """Put a finished node into the collection around it."""
        if not self.stack:
            self.roots.append(node)
            return
        self.check_depth(len(self.stack) + node.height, node.line)
        self.stack[-1].children.append(node)

    def define(self, anchor: str | None, node: Node | None) -> None:
        if anchor is not None:
            self.anchors[anchor] = node

    def aliased(self, anchor: Any, line: int) -> Node:
        if anchor not in self.anchors:
            message = f"not YAML: found the alias *{anchor}, but no anchor &{anchor} before it"
            raise UnreadableError(Problem(message=message, line=line, remedy="quote the text if it starts with a star"))
        node = self.anchors[anchor]
        if node is None:
            message = f"found the alias *{anchor} inside its own anchor, which never ends"
            raise UnreadableError(Problem(message=message, line=line, remedy="write the values out"))
        self.count(node.size, line)
        return replace(node, line=line)

    def count(self, nodes: int, line: int) -> None:
        self.node_count += nodes
        if self.node_count > MAX_NODES:
            message = f"found more than {MAX_NODES:,} values once aliases are expanded, no recipe needs as many"
            raise UnreadableError(Problem(message=message, line=line, remedy="write the recipe without nested aliases"))

    def check_depth(self, depth: int, line: int) -> None:
        if depth > MAX_DEPTH:
            message = f"found values nested more than {MAX_DEPTH} levels deep, no recipe needs as many"
            raise UnreadableError(Problem(message=message, line=line, remedy="check the brackets"))

    def scalar(self, event: Any, line: int) -> Node:
        self.count(1, line)
        text: str = event.value
        tag = event.tag
        if tag is None or tag == "!":
            tag = self.loader.resolve(yaml.ScalarNode, text, event.implicit)
        elif tag not in _SCALAR_TAGS:
            self.refuse_tag(tag, line)
        return Node(value=self.construct(tag, text), line=line, text=text)

    def construct(self, tag: str, text: str) -> Scalar | None:
        """Dates stay text, and so do what YAML 1.1 takes for numbers of base 60 (12:30) and endless digits."""
        if tag not in _SCALAR_TAGS or tag.endswith(":str") or ":" in text or len(text) > _MAX_NUMBER:
            return text
        try:
            value: Scalar | None = self.loader.construct_object(yaml.ScalarNode(tag, text))
        except (ValueError, KeyError, IndexError, OverflowError):
            return text
        return value

    def refuse_tag(self, tag: str, line: int) -> None:
        self.problems.append(
            Problem(
                message=f"found the tag {tag[:_MAX_SHOWN]!r}, recipes hold plain values",
                line=line,
                remedy="drop the tag",
            )
        )

    def mapping(self, frame: _Frame) -> Node:
        entries: dict[str, Node] = {}
        inherited: dict[str, Node] = {}
        for key, value in zip(frame.children[0::2], frame.children[1::2], strict=True):
            if isinstance(key.value, (tuple, Mapping)):
                message = "found a list or mapping as a key, keys are text"
                self.problems.append(Problem(message=message, line=key.line, remedy="quote braces and brackets"))
            elif key.text == _MERGE_KEY:
                self.inherit(value, inherited)
            else:
                self.enter(entries, key, replace(value, line=key.line))
        return _collection(frame.line, {**inherited, **entries})

    def enter(self, entries: dict[str, Node], key: Node, value: Node) -> None:
        known = entries.get(key.text)
        if known is not None:
            message = f"found the key twice, first in line {known.line}"
            self.problems.append(
                Problem(subject=key.text, message=message, line=key.line, remedy="keep one of the two")
            )
        entries[key.text] = value

    def inherit(self, value: Node, inherited: dict[str, Node]) -> None:
        """`<<: *anchor`, or a list of such: entries that the mapping does not set itself; earlier ones win."""
        for source in value.value if isinstance(value.value, tuple) else (value,):
            if isinstance(source.value, Mapping):
                for name, child in source.value.items():
                    inherited.setdefault(name, child)
            else:
                message = "found no mapping to take entries from"
                self.problems.append(Problem(subject=_MERGE_KEY, message=message, line=value.line, remedy="drop it"))


def _sequence(frame: _Frame) -> Node:
    return _collection(frame.line, tuple(frame.children))


def _collection(line: int, value: tuple[Node, ...] | dict[str, Node]) -> Node:
    children = value if isinstance(value, tuple) else tuple(value.values())
    size = 1 + sum(child.size for child in children)
    height = 1 + max((child.height for child in children), default=0)
    return Node(value=value, line=line, size=size, height=height)
