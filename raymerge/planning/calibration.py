"""CPU seconds per gigabyte, measured by benchmarks/calibrate.py; do not edit."""

from __future__ import annotations

MEASURED_ON = "2026-11-23"
MACHINE = "2 cores of AMD EPYC at load 3"
# The largest relative difference between these parts, added up, and whole merges between objects on loopback.
ERROR = 0.13
READ_SECONDS_PER_GB = 0.86
WRITE_SECONDS_PER_GB = 1.79
# By method: three models (two, one, where it takes no more) and the base where it has one, per GB of bfloat16 read.
MERGE_SECONDS_PER_GB = {
    "linear": 0.26,
    "slerp": 0.79,
    "nuslerp": 0.75,
    "multislerp": 0.77,
    "karcher": 0.78,
    "task_arithmetic": 0.25,
    "ties": 0.91,
    "dare_linear": 1.25,
    "dare_ties": 1.29,
    "breadcrumbs": 1.39,
    "breadcrumbs_ties": 1.5,
    "della": 2.93,
    "della_linear": 2.69,
    "sce": 4.1,
    "model_stock": 0.5,
    "nearswap": 0.3,
    "arcee_fusion": 13.62,
    "ram": 0.71,
    "ramplus_tl": 0.92,
    "passthrough": 0.28,
}
