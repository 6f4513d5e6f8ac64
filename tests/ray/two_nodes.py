"""A Ray cluster of two nodes on this machine, one processor each: `python -m tests.ray.two_nodes`.

It prints what a test needs to know as one line of JSON and stands until its input ends. It is a process of its own: starting a
node forks, and in a process where gRPC's threads run (any that was connected to a cluster before) the child may abort.
"""

import json
import sys
from typing import Any

SMALL: Any = {"num_cpus": 1, "object_store_memory": 128 << 20, "include_dashboard": False}


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=SMALL)
    worker = cluster.add_node(**SMALL)
    [raylet] = worker.all_processes["raylet"]
    found = {"address": cluster.address, "head": cluster.head_node.node_id, "worker": worker.node_id}
    print(json.dumps(found | {"worker_raylet": raylet.process.pid}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
