"""Where decode tasks run on a cluster of unequal machines: by Ray's own rule, and by cores.

    python benchmarks/placement.py

A simulated cluster on this machine: a head node without CPUs and four machines of 2, 4, 8 and 16.
Tasks request no CPU, as decode tasks must (`data.decode_machines`). Prints the tasks of each.
"""

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import ray
import ray.data
from ray.cluster_utils import Cluster

from effnet_ray.data.decode_machines import TaskDealer, cluster_shares, map_on_machines
from effnet_ray.data.ray_executor import data_context

SIZES = (2, 4, 8, 16)
TASKS = 240
TASK_S = 0.02


def where(block: dict[str, Any]) -> dict[str, Any]:
    """The machine on which a task runs."""
    time.sleep(TASK_S)
    return {"node": np.asarray([ray.get_runtime_context().get_node_id()])}


def counts(names: dict[str, str], *, by_cores: bool) -> dict[str, int]:
    """Machine → tasks."""
    with ray.data.DataContext.current(data_context(64)):
        items = ray.data.from_items([{"n": n} for n in range(TASKS)], override_num_blocks=TASKS)
        if by_cores:
            mapped = map_on_machines(items, where, tasks=8, dealer=TaskDealer(cluster_shares))
        else:
            mapped = items.map_batches(where, batch_size=None, num_cpus=0, concurrency=8)
        batches = mapped.iter_batches(batch_size=None, batch_format="numpy")
        result = Counter(names[batch["node"][0]] for batch in batches)
    return {name: result[name] for name in names.values()}


def main() -> None:
    """Print one row per rule."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    names = {cluster.head_node.node_id: "head"}
    names |= {cluster.add_node(num_cpus=size).node_id: f"{size} cores" for size in SIZES}
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    rows = {
        "by cores": {"head": 0} | {f"{size} cores": TASKS * size / sum(SIZES) for size in SIZES},
        "Ray's rule": counts(names, by_cores=False),
        "ours": counts(names, by_cores=True),
    }
    ray.shutdown()
    cluster.shutdown()
    print("| | " + " | ".join(names.values()) + " |")
    print("|---" * (len(names) + 1) + "|")
    for rule, tasks in rows.items():
        print(f"| {rule} | " + " | ".join(f"{tasks[name]:.0f}" for name in names.values()) + " |")
    print(json.dumps({"rows": rows, "tasks": TASKS, "ray": ray.__version__}))


if __name__ == "__main__":
    main()
