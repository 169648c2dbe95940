"""Merge large language models as a distributed, resumable pipeline on Ray."""
