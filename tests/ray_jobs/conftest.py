"""A Ray cluster on this machine, on the loopback interface alone."""

from __future__ import annotations

import os

import pytest
from helpers import ROOT


@pytest.fixture(scope="session")
def cluster():
    """The cluster of two nodes, to which this process is connected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}
        # A node that is lost is noticed sooner than by default.
        health = {"health_check_period_ms": 300, "health_check_failure_threshold": 4}
        head = {**node, "include_dashboard": False, "_system_config": health}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            made.add_node(**node, labels={"kind": "b"})
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
