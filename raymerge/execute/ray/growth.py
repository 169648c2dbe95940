"""Is an autoscaler bringing nodes? Read from whatever this release of Ray and its autoscaler publish."""

from __future__ import annotations

import json
from typing import Any

import ray

_TIMEOUT_SECONDS = 5
_STATUS_KEY = b"__autoscaling_status"  # where the autoscaler v1 reports, in the cluster's key-value store


def nodes_are_coming() -> bool:
    """Whether an autoscaler has launches or booting nodes under way; False where there is none, or it cannot tell."""
    client = getattr(getattr(getattr(ray, "_private", None), "worker", None), "global_worker", None)
    gcs: Any = getattr(client, "gcs_client", None)
    if gcs is None:
        return False
    try:
        return _reported_by_v1(gcs) or _reported_by_v2(gcs)
    except Exception:  # noqa: BLE001 - private calls of Ray may change or time out; then nothing is known to come
        return False


def _reported_by_v1(gcs: Any) -> bool:
    status = gcs.internal_kv_get(_STATUS_KEY, None)
    if not status:
        return False
    report = json.loads(status).get("autoscaler_report") or {}
    return bool(report.get("pending_launches") or report.get("pending_nodes"))


def _reported_by_v2(gcs: Any) -> bool:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(gcs.address, timeout=_TIMEOUT_SECONDS)
    return bool(status.pending_launches or status.pending_nodes)
