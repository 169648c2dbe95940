"""How wide the vectors are that kernels are compiled to."""

from __future__ import annotations

import llvmlite.binding as llvm

PREFERS_HALF = "prefer-256-bit"
SINCE_ICE_LAKE = "+avx512vbmi2"


def wide_vectors(features: str) -> str:
    """A processor's features for the compiler, without its choice of half vectors where whole ones are faster.

    LLVM takes 256 of 512 bits on Intel's processors, because the first ones slow down when more is in use. Since Ice
    Lake they hardly do: elections, norms and Gram matrices ran 1.1 to 1.3 times as fast on a Xeon of 2.6 GHz.
    """
    return f"{features},-{PREFERS_HALF}" if SINCE_ICE_LAKE in features.split(",") else features


def host_features() -> str:
    return wide_vectors(llvm.get_host_cpu_features().flatten())
