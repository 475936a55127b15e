"""Detects that a spot market or maintenance is about to take this worker's machine away."""

import threading

import ray
from ray._private.state import state  # Ray Train's own watcher uses it too (ray 2.60)

POLL_S = 1
"""Seconds between polls: little of the two minutes between EC2's notice and the end of a spot
machine."""


class PreemptionWatch:
    """Checks every second whether Ray drains this worker's node.

    A drain is requested by `ray drain-node`, by KubeRay when a pod ends, and by the spot watcher.
    """

    def __init__(self) -> None:
        self._node_id = ray.get_runtime_context().get_node_id()
        self._draining = threading.Event()
        threading.Thread(target=self._poll, name="drain", daemon=True).start()

    def is_draining(self) -> bool:
        """Whether the node is being drained."""
        return self._draining.is_set()

    def _poll(self) -> None:
        while not self._draining.wait(POLL_S):
            try:
                draining_nodes = state.get_draining_nodes()
            except Exception:  # gRPC's, while the head is unreachable: poll again
                continue
            if self._node_id in draining_nodes:
                self._draining.set()
