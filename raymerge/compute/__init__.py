"""Arithmetic on blocks: the few kernels every method is made of. The only owner of numba."""

from raymerge.compute.operations import Operations, open_operations
from raymerge.compute.random_bits import stream_key

__all__ = ["Operations", "open_operations", "stream_key"]
