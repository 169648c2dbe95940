"""Merge large language models as a distributed, resumable pipeline on Ray."""

from raymerge.errors import (
    CheckpointError,
    ExecutionError,
    PlanError,
    RaymergeError,
    RecipeError,
    StorageError,
    UsageError,
    VerifyError,
)
from raymerge.pipeline import load_recipe, merge, plan, tensors
from raymerge.reporting import MergeResult

__all__ = [
    "CheckpointError",
    "ExecutionError",
    "MergeResult",
    "PlanError",
    "RaymergeError",
    "RecipeError",
    "StorageError",
    "UsageError",
    "VerifyError",
    "load_recipe",
    "merge",
    "plan",
    "tensors",
]
