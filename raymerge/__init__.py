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
from raymerge.methods import Base, Block, Inputs, Parameter, merge_method
from raymerge.pipeline import load_recipe, merge, plan, tensors
from raymerge.reporting import MergeResult

__all__ = [
    "Base",
    "Block",
    "CheckpointError",
    "ExecutionError",
    "Inputs",
    "MergeResult",
    "Parameter",
    "PlanError",
    "RaymergeError",
    "RecipeError",
    "StorageError",
    "UsageError",
    "VerifyError",
    "load_recipe",
    "merge",
    "merge_method",
    "plan",
    "tensors",
]
