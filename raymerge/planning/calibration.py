"""CPU seconds per gigabyte, measured by benchmarks/calibrate.py; do not edit."""

from __future__ import annotations

MEASURED_ON = "2026-11-22"
MACHINE = "2 cores of AMD EPYC at load 9"
# The largest relative difference between these parts, added up, and whole merges between objects on loopback.
ERROR = 0.67
READ_SECONDS_PER_GB = 1.59
WRITE_SECONDS_PER_GB = 0.31
# By method: three models (two, one, where it takes no more) and the base where it has one, per GB of bfloat16 read.
MERGE_SECONDS_PER_GB = {
    "linear": 0.17,
    "slerp": 0.57,
    "nuslerp": 0.5,
    "multislerp": 0.5,
    "karcher": 0.58,
    "task_arithmetic": 0.14,
    "ties": 1.17,
    "dare_linear": 0.9,
    "dare_ties": 1.02,
    "breadcrumbs": 1.34,
    "breadcrumbs_ties": 1.38,
    "della": 4.97,
    "della_linear": 4.97,
    "sce": 3.67,
    "model_stock": 0.47,
    "nearswap": 0.3,
    "arcee_fusion": 10.75,
    "ram": 0.78,
    "ramplus_tl": 1.16,
    "passthrough": 0.33,
}
