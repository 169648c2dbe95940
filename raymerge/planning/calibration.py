"""CPU seconds per gigabyte, measured by benchmarks/calibrate.py; do not edit."""

from __future__ import annotations

MEASURED_ON = "2026-11-22"
MACHINE = "2 cores of AMD EPYC"
# The largest relative difference between these parts, added up, and whole merges between objects on loopback.
ERROR = 0.2
READ_SECONDS_PER_GB = 1.16
WRITE_SECONDS_PER_GB = 0.57
# By method: three models (two, one, where it takes no more) and the base where it has one, per GB of bfloat16 read.
MERGE_SECONDS_PER_GB = {
    "linear": 0.21,
    "slerp": 0.5,
    "nuslerp": 0.4,
    "multislerp": 0.41,
    "karcher": 0.47,
    "task_arithmetic": 0.18,
    "ties": 0.9,
    "dare_linear": 1.04,
    "dare_ties": 1.22,
    "breadcrumbs": 1.26,
    "breadcrumbs_ties": 1.45,
    "della": 6.88,
    "della_linear": 6.6,
    "sce": 2.74,
    "model_stock": 0.43,
    "nearswap": 0.26,
    "arcee_fusion": 10.09,
    "ram": 0.63,
    "ramplus_tl": 0.89,
    "passthrough": 0.32,
}
