"""How kernels are compiled: IEEE arithmetic as written, the GIL released, kept on disk; and what all of them use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from raymerge.compute.kernel_cache import VARIABLE, pin_kernel_cache

CACHE = pin_kernel_cache()  # numba reads the folder's name when it is imported

import numba  # noqa: E402
import numpy as np  # noqa: E402
from llvmlite import ir  # noqa: E402
from numba.core import caching, types  # noqa: E402
from numba.core.runtime.nrt import rtsys  # noqa: E402
from numba.extending import intrinsic, overload  # noqa: E402

from raymerge.compute.vectors import host_features  # noqa: E402

TILE = 1024  # elements that kernels take at a time, so that what they make of them stays in the first-level cache

F = TypeVar("F", bound=Callable[..., Any])

_njit: Any = numba.njit  # Any: whether numba carries types depends on its version
_config: Any = numba.config
_config.CACHE_DIR = os.environ.get(VARIABLE, "")  # read when numba is imported, which others may have done before
if _config.CPU_NAME is None and _config.CPU_FEATURES is None:  # unless the environment says otherwise
    _config.CPU_FEATURES = host_features()  # read at the first compilation; kept kernels are told apart by it
_FunctionCache: Any = caching.FunctionCache
_version: Any = numba.version_info
carray: Any = numba.carray  # type: ignore[attr-defined,unused-ignore]


_OPTIONS = {"nogil": True, "fastmath": False, "error_model": "numpy", "boundscheck": False}


class _KernelCache(_FunctionCache):  # type: ignore[misc]
    """As numba's, but loads a kernel without the registries that only compiling needs: they take 0.1 s to import."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


# Up to the newest version of numba that was seen to load kernels so: what a later one sets up first is not known, and a
# kernel that lacks it would end the process.
_LOADS_KERNELS_ALONE = _version.short <= (0, 68)


def _compiled(function: Any, **options: bool) -> Any:
    compiled: Any = _njit(**_OPTIONS, **options, cache=CACHE and not _LOADS_KERNELS_ALONE)(function)
    if CACHE and _LOADS_KERNELS_ALONE:
        compiled._cache = _KernelCache(function)  # noqa: SLF001  as numba's option does
    return compiled


def jit(function: F) -> F:
    """Compile at the first call. No contraction to fused multiply-adds and no threads: results must not vary."""
    compiled: F = _compiled(function)
    return compiled


def inlined(function: F) -> F:
    """As jit, and made part of whatever calls it: what kernels do for every tile and input.

    A call hands over each array as seven numbers, through memory: an election of three took a sixth longer.
    """
    compiled: F = _compiled(function, forceinline=True)
    return compiled


def _pointer_to(_context: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to elements of the array `like`."""
    to: Any = types.CPointer
    signature = to(like.dtype)(address, like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


pointer: Any = intrinsic(_pointer_to)


def _prefetching(*, writing: int, level: int) -> Any:
    def prefetch(_context: Any, _address: Any) -> Any:
        """Bring the line that holds an address to the cache of a level."""

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
            function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
            locality, data = flag(4 - level), flag(1)
            builder.call(function, [builder.inttoptr(arguments[0], byte), flag(writing), locality, data])
            return context.get_dummy_value()

        return types.void(types.uintp), generate

    return intrinsic(prefetch)


prefetch: Any = _prefetching(writing=0, level=2)
prefetch_near: Any = _prefetching(writing=0, level=1)
prefetch_to_write: Any = _prefetching(writing=1, level=2)


def _plus_exact_product(_context: Any, _z: Any, _x: Any, _y: Any) -> Any:
    """A sum z + x y in float64, where x y has at most 53 bits: that it may be rounded only once changes nothing."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        z, x, y = arguments
        return builder.fadd(z, builder.fmul(x, y, flags=("contract",)), flags=("contract",))

    return types.float64(types.float64, types.float64, types.float64), generate


plus_exact_product: Any = intrinsic(_plus_exact_product)


def _float_of_bits(_context: Any, _bits: Any) -> Any:
    signature = types.float32(types.uint32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


float_of_bits: Any = intrinsic(_float_of_bits)


def _choose(_context: Any, _condition: Any, _yes: Any, _no: Any) -> Any:
    """One of two numbers of one type, both made whatever the condition says."""
    signature = _yes(types.boolean, _yes, _yes)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(arguments[0], arguments[1], arguments[2])

    return signature, generate


choose: Any = intrinsic(_choose)  # an `if` is a jump, and a loop with several of those may not become vector code


def _shifted(_context: Any, _bits: Any, _by: Any) -> Any:
    """An unsigned number shifted down by one of its own type, less than its bits."""
    signature = _bits(_bits, _bits)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.lshr(arguments[0], arguments[1])

    return signature, generate


shifted: Any = intrinsic(_shifted)  # by a variable: `>>` makes 64-bit numbers of both, and vectors of half as many


def element(x: Any, j: Any) -> Any:
    """Element j of an array of floats, or of bfloat16 codes (uint16). For kernels, which compile for either."""
    raise NotImplementedError("compiled code only")


def _element(x, j):  # type: ignore[no-untyped-def]  # noqa: ARG001  numba compares signatures
    if x.dtype == types.uint16:
        return lambda x, j: float_of_bits(np.uint32(x[j]) << np.uint32(16))
    return lambda x, j: x[j]


overload(element)(_element)


@jit
def aligned(size: Any, dtype: Any) -> Any:
    """Scratch that starts on a cache line: vectors that straddle two made the loops over it a third slower."""
    memory = np.empty(size + 64, dtype)  # enough of the smallest elements
    start = (64 - memory.ctypes.data % 64) % 64 // memory.itemsize
    return memory[start : start + size]


def lent(array: Any) -> Any:
    """The same elements without a count of references; `array`, contiguous, must be held as long as they are used.

    A slice or a call counts each array up and down, atomically: that took 40 ns for every input of every tile, a fifth
    of an election. What Python passes is held until the kernel returns; for scratch of its own see `hold`.
    """
    raise NotImplementedError("compiled code only")


def _lent(array):  # type: ignore[no-untyped-def]
    if array.layout != "C":
        return None  # what lies with gaps between its elements is refused by the compiler
    return lambda array: carray(pointer(array.ctypes.data, array), array.shape)


overload(lent)(_lent)


@jit
def hold(arrays: Any) -> Any:
    """At a kernel's end, keeps a tuple of arrays until then: each would be freed after its last use otherwise."""
    return len(arrays)
