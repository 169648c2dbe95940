"""Submitting a merge to a cluster that this machine is no part of, and following it there."""
