"""Element types: their safetensors codes, recipe names and sizes. Knows no array library."""

from __future__ import annotations

from enum import Enum


class DType(Enum):
    """An element type; the value is its code in a safetensors header."""

    BOOL = "BOOL"
    U8 = "U8"
    I8 = "I8"
    U16 = "U16"
    I16 = "I16"
    U32 = "U32"
    I32 = "I32"
    U64 = "U64"
    I64 = "I64"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F8_E8M0 = "F8_E8M0"
    F4 = "F4"
    F6_E2M3 = "F6_E2M3"
    F6_E3M2 = "F6_E3M2"
    F16 = "F16"
    BF16 = "BF16"
    F32 = "F32"
    F64 = "F64"
    C64 = "C64"

    @property
    def bits(self) -> int:
        return _BITS[self]

    @property
    def alignment_bytes(self) -> int:
        """The boundary a tensor of this type starts on in a well laid out file (sub-byte types: 1)."""
        return max(1, self.bits // 8)

    @property
    def is_mergeable(self) -> bool:
        """Whether values of this type can be averaged: plain floats, not codes, integers or flags."""
        return self in _RECIPE_NAMES

    @property
    def recipe_name(self) -> str:
        """The name in recipes and in config.json ("bfloat16"), for mergeable types; else the code in lower case."""
        return _RECIPE_NAMES.get(self, self.value.lower())

    @classmethod
    def from_recipe_name(cls, name: str) -> DType:
        """Raises KeyError for a name that is not one of `recipe_dtype_names()`."""
        return _BY_RECIPE_NAME[name.removeprefix("torch.")]


_BITS = {
    DType.BOOL: 8,
    DType.U8: 8,
    DType.I8: 8,
    DType.U16: 16,
    DType.I16: 16,
    DType.U32: 32,
    DType.I32: 32,
    DType.U64: 64,
    DType.I64: 64,
    DType.F8_E4M3: 8,
    DType.F8_E5M2: 8,
    DType.F8_E8M0: 8,
    DType.F4: 4,
    DType.F6_E2M3: 6,
    DType.F6_E3M2: 6,
    DType.F16: 16,
    DType.BF16: 16,
    DType.F32: 32,
    DType.F64: 64,
    DType.C64: 64,
}
_RECIPE_NAMES = {DType.F16: "float16", DType.BF16: "bfloat16", DType.F32: "float32", DType.F64: "float64"}
_BY_RECIPE_NAME = {name: dtype for dtype, name in _RECIPE_NAMES.items()} | {
    "fp16": DType.F16,
    "half": DType.F16,
    "bf16": DType.BF16,
    "fp32": DType.F32,
    "float": DType.F32,
    "fp64": DType.F64,
    "double": DType.F64,
}


def recipe_dtype_names() -> tuple[str, ...]:
    """Every spelling that `dtype:` and `out_dtype:` take, canonical ones first."""
    return tuple(_BY_RECIPE_NAME)
