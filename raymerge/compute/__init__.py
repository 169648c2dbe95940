"""Arithmetic on blocks: the few kernels every method is made of. The only owner of numba."""
