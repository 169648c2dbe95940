"""Merge methods from outside this package: files that a run names, and packages that are installed.

A file travels as text: workers share no disk with the driver. What a plan records is the SHA-256 of the code, and every
task compares it with the code at hand before it merges a tensor.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import re
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType, TracebackType

from raymerge.errors import ExecutionError, Problem, RaymergeError, UsageError
from raymerge.methods.declaration import Method, forget_module, registered_methods

ENTRY_POINTS = "raymerge.methods"  # the group in a package's metadata
_MAX_SOURCE_BYTES = 128 << 10  # a file goes with every task, beside arguments that Ray keeps in memory up to 100 KiB
_PACKAGE = __name__.partition(".")[0]
_lock = threading.RLock()
_files: dict[str, MethodSource] = {}  # by the name of the module made of it
_entry_point_modules: dict[str, str] | None = None  # module -> the package's name and version; None before loading


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSource:
    """A file that declares methods. `name` is its path where it was read, for messages; the text is what counts."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def module_name(self) -> str:
        stem = re.sub(r"\W", "_", Path(self.name).stem)
        return f"raymerge_method_{stem}_{self.sha256[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the code of a method came from. `sha256` is "" for this package's own, None where nobody can tell.

    `source` is given for methods of a file that was loaded: what workers need.
    """

    name: str
    sha256: str | None
    source: MethodSource | None = None
    is_installed: bool = False


def read_source(path: str) -> MethodSource:
    """Raises UsageError for what is no readable file of Python text."""
    try:
        data = Path(os.path.expanduser(path)).read_bytes()  # noqa: PTH111 - Path.expanduser raises where nobody is home
        text = data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise _usage_error(path, None, "there is no such file") from error
    except OSError as error:
        raise _usage_error(path, None, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _usage_error(path, line, f"found byte 0x{data[error.start]:02x}, expected UTF-8 text") from error
    if len(data) > _MAX_SOURCE_BYTES:
        limit = f"has {len(data)} bytes, a file of methods may have {_MAX_SOURCE_BYTES}"
        raise _usage_error(path, None, limit, "install larger code as a package on every node")
    return MethodSource(name=path, text=text)


def load_sources(sources: Iterable[MethodSource]) -> None:
    """Register what the sources declare, each once in a process; an edited file replaces what it declared before."""
    for source in sources:
        with _lock:
            if source.module_name not in sys.modules:
                _load(source)


def load_entry_points() -> None:
    """Register the methods of installed packages, once in a process."""
    global _entry_point_modules  # noqa: PLW0603 - the registry is the process's
    with _lock:
        if _entry_point_modules is None:
            _entry_point_modules = {}
            for point in entry_points(group=ENTRY_POINTS):
                _entry_point_modules[point.module] = _load_package(point)


def origin_of(method: Method) -> Origin:
    module = method.merge.__module__
    if module.partition(".")[0] == _PACKAGE:
        return Origin(name=_PACKAGE, sha256="")
    if module in _files:
        return Origin(name=_files[module].name, sha256=_files[module].sha256, source=_files[module])
    for package_module, package in (_entry_point_modules or {}).items():
        if module == package_module or module.startswith(f"{package_module}."):
            return Origin(name=package, sha256=_file_sha256(module), is_installed=True)
    return Origin(name=module, sha256=_file_sha256(module))


def check_code(method: Method, sha256: str) -> None:
    """Raise ExecutionError where this process knows `method` by other code than the plan was made with."""
    origin = origin_of(method)
    if origin.sha256 != sha256:
        raise ExecutionError(
            Problem(
                subject=method.name,
                message=f"the plan was made with other code of it than {origin.name} has here",
                remedy="install one version everywhere; a file must stay as it is while a merge runs",
            )
        )


def formula_error(method: Method, tensor: str, error: Exception) -> ExecutionError | None:
    """What to raise for `error` if it came out of an outside method's own code; None if it did not."""
    if isinstance(error, RaymergeError) or not origin_of(method).sha256:
        return None
    origin = origin_of(method)
    path = origin.source.name if origin.source else getattr(sys.modules.get(method.merge.__module__), "__file__", None)
    line = _line_in(path, error.__traceback__)
    if line is None:
        return None
    message = f"{method.name} failed on {tensor}: {type(error).__name__}: {error}"
    return ExecutionError(Problem(subject=_place(str(path), line), message=message))


def _load(source: MethodSource) -> None:
    for module, known in list(_files.items()):
        if known.name == source.name:  # an earlier version: what it declared goes
            forget_module(module)
            del _files[module]
            sys.modules.pop(module, None)
    _forget_script(source)
    _files[source.module_name] = source
    try:
        _run(source)
        if not any(each.merge.__module__ == source.module_name for each in registered_methods().values()):
            remedy = "put @raymerge.merge_method(...) above its function or class"
            raise _usage_error(source.name, None, "declares no merge method", remedy)
    except BaseException:
        forget_module(source.module_name)
        del _files[source.module_name]
        sys.modules.pop(source.module_name, None)
        raise


def _run(source: MethodSource) -> None:
    """Import the text as a module of its own, without its file."""
    module = ModuleType(source.module_name)
    module.__file__ = source.name
    lines = source.text.splitlines(keepends=True)
    linecache.cache[source.name] = (len(source.text), None, lines, source.name)  # tracebacks and inspect show the text
    sys.modules[source.module_name] = module
    try:
        exec(compile(source.text, source.name, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - a user asked
    except SyntaxError as error:
        raise _usage_error(source.name, error.lineno, f"is not valid Python: {error.msg}") from error
    except RaymergeError as error:
        line = _line_in(source.name, error.__traceback__)
        problems = (
            Problem(subject=_place(source.name, line), message=each.message, remedy=each.remedy)
            for each in error.problems
        )
        raise UsageError(*problems) from error
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        line = _line_in(source.name, error.__traceback__)
        remedy = "a file of methods can import what is installed on every node" if _is_import(error) else ""
        raise _usage_error(source.name, line, f"{type(error).__name__}: {error}", remedy) from error


def _load_package(point: EntryPoint) -> str:
    package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    try:
        point.load()
    except Exception as error:
        message = f"its merge methods ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        problem = Problem(subject=package, message=message, remedy="repair or uninstall the package")
        raise UsageError(problem) from error
    return package


def _forget_script(source: MethodSource) -> None:
    """A script that names its own file declared the same methods as `__main__`; those of the file take their place."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is not None and Path(script).absolute() == Path(os.path.expanduser(source.name)).absolute():  # noqa: PTH111
        forget_module("__main__")


@cache
def _file_sha256(module: str) -> str | None:
    """The SHA-256 of the file that a module was imported from; None where there is none (a notebook)."""
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
    except OSError:
        return None


def _line_in(path: str | None, trace: TracebackType | None) -> int | None:
    """The last line of that file on the way to where an error was raised."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _is_import(error: BaseException) -> bool:
    return isinstance(error, ImportError)


def _place(path: str, line: int | None) -> str:
    return path if line is None else f"{path}, line {line}"


def _usage_error(path: str, line: int | None, message: str, remedy: str = "") -> UsageError:
    return UsageError(Problem(subject=_place(path, line), message=message, remedy=remedy))
