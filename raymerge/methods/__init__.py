"""Merge methods: declarations that planning reads, and formulas that run block by block."""
