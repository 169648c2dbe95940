"""Runs the pickle of a PyTorch checkpoint as data: it can describe tensors, and nothing else.

A pickle is a program for a small stack machine, whose opcodes name classes and call them. This machine knows the few
opcodes that a file of tensors needs and has no way to import or call anything: a name is looked up in the tables
below, and what is not there is refused. Opcodes: https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NoReturn

from raymerge.dtypes import DType

# A checkpoint of 100,000 tensors takes 4 million operations and 12 MB. The limits bound what a hostile file can cost:
# some seconds, some 400 MB.
MAX_PICKLE_BYTES = 16 * 2**20
_MOST_OPERATIONS = 5_000_000
_NEWEST_PROTOCOL = 5
_MOST_DIMENSIONS = 64  # PyTorch's own limit

_STORAGES = {
    "DoubleStorage": DType.F64,
    "FloatStorage": DType.F32,
    "HalfStorage": DType.F16,
    "BFloat16Storage": DType.BF16,
    "LongStorage": DType.I64,
    "IntStorage": DType.I32,
    "ShortStorage": DType.I16,
    "CharStorage": DType.I8,
    "ByteStorage": DType.U8,
    "BoolStorage": DType.BOOL,
    "ComplexFloatStorage": DType.C64,
}
_DTYPES = {
    "float64": DType.F64, "float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16, "int64": DType.I64,
    "int32": DType.I32, "int16": DType.I16, "int8": DType.I8, "uint64": DType.U64, "uint32": DType.U32,
    "uint16": DType.U16, "uint8": DType.U8, "bool": DType.BOOL, "complex64": DType.C64,
    "float8_e4m3fn": DType.F8_E4M3, "float8_e5m2": DType.F8_E5M2, "float8_e8m0fnu": DType.F8_E8M0,
}  # fmt: skip


class RefusedPickleError(Exception):
    """The pickle does something else than describing tensors; the text says what."""


class DamagedPickleError(Exception):
    """The pickle is cut short or not a pickle; the text says what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A run of elements of one type that lies in the file under `key`; of bytes where `dtype` is None."""

    key: str
    dtype: DType | None
    element_count: int

    @property
    def nbytes(self) -> int:
        return self.element_count * (1 if self.dtype is None else self.dtype.bits // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A view of a storage; `offset` and `stride` count elements of `dtype`."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """A global that the pickle named: a word, never the thing itself."""

    text: str


def run_pickle(stream: BytesIO) -> Any:
    """The value that the pickle at the stream's position describes; the stream is left behind it.

    Values are None, booleans, numbers, texts, lists, tuples, dicts and StoredTensors. They may contain themselves, and
    share parts: only look at them level by level. Raises RefusedPickleError, DamagedPickleError.
    """
    try:
        return _Machine(stream).run()
    except (IndexError, KeyError, ValueError) as error:  # the machine's stacks and memo, and pickletools' readers
        raise DamagedPickleError(f"is not a sound pickle ({type(error).__name__}: {str(error)[:100]})") from error


class _Machine:
    def __init__(self, stream: BytesIO) -> None:
        self._stream = stream
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        read = self._stream.read
        for _ in range(_MOST_OPERATIONS):
            code = read(1)
            found = _PROGRAM.get(code)
            if found is None:
                _refuse_opcode(code)
            step, read_argument = found
            step(self, read_argument(self._stream) if read_argument is not None else None)
            if code == _STOP:
                return self._stack.pop()
        raise RefusedPickleError(f"its pickle takes more than {_MOST_OPERATIONS:,} operations")

    def ignore(self, _: Any) -> None:
        pass

    def protocol(self, number: int) -> None:
        if number > _NEWEST_PROTOCOL:
            _refuse(f"its pickle has protocol {number}, known are those up to {_NEWEST_PROTOCOL}")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def marked_tuple(self, _: Any) -> None:
        items = self._pop_to_mark()
        self.push(tuple(items))

    def short_tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError("too few values for a tuple")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def append(self, _: Any) -> None:
        value = self._stack.pop()
        _list(self._stack[-1]).append(value)

    def appends(self, _: Any) -> None:
        values = self._pop_to_mark()
        _list(self._stack[-1]).extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _put(self._stack[-1], key, value)

    def set_items(self, _: Any) -> None:
        items = self._pop_to_mark()
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self._stack[-1], key, value)

    def memorize(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def recall(self, index: int) -> None:
        self.push(self._memo[index])

    def named(self, pair: str) -> None:
        self.push(_find(*pair.split(" ", 1)))

    def named_on_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            _refuse("its pickle names something by what is no text")
        self.push(_find(module, name))

    def call(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        build = _BUILDERS.get(name.text) if type(name) is _Name else None
        if build is None:
            _refuse(f"its pickle calls {name.text if type(name) is _Name else _kind(name)}")
        if type(arguments) is not tuple:
            _refuse(f"its pickle calls {name.text} with {_kind(arguments)} for arguments")
        self.push(build(arguments))

    def set_state(self, _: Any) -> None:
        """A state_dict carries `_metadata` of its modules as an attribute, which says nothing of the tensors."""
        state = self._stack.pop()
        if type(self._stack[-1]) is not dict or type(state) is not dict:
            _refuse(f"its pickle sets the state of {_kind(self._stack[-1])}")

    def persistent(self, _: Any) -> None:
        self.push(_storage(self._stack.pop()))


Step = Callable[[_Machine, Any], None]

_STEPS: dict[str, Step] = {
    "PROTO": _Machine.protocol,
    "FRAME": _Machine.ignore,
    "STOP": _Machine.ignore,
    "MARK": _Machine.mark,
    "NONE": _Machine.push,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING"), _Machine.push),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE": _Machine.marked_tuple,
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.memorize),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_on_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.persistent,
}


_STOP = b"."
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# What to do for an opcode, and how its argument is read: that of an opcode which is not here is never read.
_PROGRAM: dict[bytes, tuple[Step, Callable[[BytesIO], Any] | None]] = {
    code: (_STEPS[opcode.name], opcode.arg.reader if opcode.arg is not None else None)
    for code, opcode in _OPCODES.items()
    if opcode.name in _STEPS
}


def _refuse_opcode(code: bytes) -> NoReturn:
    if not code:
        raise ValueError("it ends before its STOP")
    if code not in _OPCODES:
        _refuse(f"its pickle holds the unknown opcode 0x{code.hex()}")
    _refuse(f"its pickle uses {_OPCODES[code].name}, which no file of tensors needs")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Empty, or of the pairs that Python 2 wrote as an argument."""
    found: dict[Any, Any] = {}
    for pair in _list(arguments[0]) if len(arguments) == 1 else ():
        if type(pair) not in (list, tuple) or len(pair) != 2:
            _refuse("its pickle makes an OrderedDict of something else than pairs")
        _put(found, pair[0], pair[1])
    if len(arguments) > 1:
        _refuse(f"its pickle makes an OrderedDict of {len(arguments)} arguments")
    return found


def _tensor_v2(arguments: tuple[Any, ...]) -> StoredTensor:
    """Of storage, offset, size, stride, requires_grad, backward_hooks and, seldom, metadata."""
    _expect(len(arguments) in (6, 7) and _is_plain(arguments[6:]), "a tensor's parts")
    return _tensor(arguments, None)


def _tensor_v3(arguments: tuple[Any, ...]) -> StoredTensor:
    """As the above, with a dtype before the metadata: for types that no class of storage stands for."""
    _expect(len(arguments) in (7, 8) and _is_plain(arguments[7:]), "a tensor's parts")
    name = arguments[6]
    dtype = _DTYPES.get(name.text.removeprefix("torch.")) if type(name) is _Name else None
    if dtype is None:
        _refuse("its pickle gives a tensor something else than an element type")
    return _tensor(arguments, dtype)


def _is_plain(metadata: tuple[Any, ...]) -> bool:
    """Whether a tensor's metadata asks for nothing, such as to negate or conjugate what is stored."""
    return not metadata or metadata[0] is None or (type(metadata[0]) is dict and not metadata[0])


def _tensor(arguments: tuple[Any, ...], dtype: DType | None) -> StoredTensor:
    storage, offset, shape, stride = arguments[:4]
    _expect(type(storage) is Storage, "a storage")
    dtype = dtype or storage.dtype
    _expect(dtype is not None, "a storage with an element type")
    _expect(_is_size(offset) and _are_sizes(shape) and _are_sizes(stride), "sizes that are not negative")
    _expect(len(shape) == len(stride), "as many strides as sizes")
    assert dtype is not None
    return StoredTensor(storage=storage, dtype=dtype, offset=offset, shape=shape, stride=stride)


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    """Of a tensor, requires_grad and backward_hooks."""
    _expect(len(arguments) == 3 and type(arguments[0]) is StoredTensor, "a parameter's tensor")
    tensor: StoredTensor = arguments[0]
    return tensor


_BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
}
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
_NAMES = frozenset(
    {*_BUILDERS, *_UNTYPED, *(f"torch.{name}" for name in _STORAGES), *(f"torch.{name}" for name in _DTYPES)}
)


def _find(module: str, name: str) -> _Name:
    text = f"{module}.{name}"
    # The module itself must match too: "torch" and "_utils._rebuild_tensor_v2" are another name of the same thing.
    if text not in _NAMES or "." in name:
        _refuse(f"its pickle names {text[:100]!a}, which is no part of a tensor")
    return _Name(text)


def _storage(told: Any) -> Storage:
    """Of what stands for a storage: ("storage", its class, key, device, element count), and None in old files."""
    _expect(type(told) is tuple and len(told) in (5, 6) and told[0] == "storage", "a storage's five parts")
    kind, key, device, count = told[1:5]
    _expect(type(kind) is _Name and type(key) is str and type(device) is str and _is_size(count), "a storage's parts")
    if told[5:] not in ((), (None,)):
        _refuse("its pickle holds a view of another storage, as PyTorch before 0.4 wrote it")
    dtype = _STORAGES.get(kind.text.removeprefix("torch."))
    _expect(dtype is not None or kind.text in _UNTYPED, "a class of storages")
    return Storage(key=key, dtype=dtype, element_count=count)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_sizes(value: object) -> bool:
    return type(value) is tuple and len(value) <= _MOST_DIMENSIONS and all(_is_size(each) for each in value)


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        _refuse(f"its pickle appends to {_kind(value)}")
    return value


def _put(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict:
        _refuse(f"its pickle sets items of {_kind(target)}")
    if type(key) not in (str, int):  # a nested tuple could take forever to hash
        _refuse(f"its pickle uses {_kind(key)} as a key")
    target[key] = value


def _expect(holds: bool, what: str) -> None:
    if not holds:
        _refuse(f"its pickle does not give {what} where a tensor needs them")


def _kind(value: object) -> str:
    return f"a {type(value).__name__.strip('_').lower()}"


def _refuse(message: str) -> NoReturn:
    raise RefusedPickleError(message)
