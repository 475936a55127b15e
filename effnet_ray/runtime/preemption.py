"""Notices that the machine is about to be taken away: by a spot market, or for maintenance."""

import threading

import ray
from ray._private.state import state  # where Ray Train's own watcher looks (ray 2.60)

LOOK_S = 1


class PreemptionWatch:
    """Looks every second whether Ray has been told to drain this worker's node.

    Who tells it: `ray drain-node`, KubeRay when a pod is ended, our spot watcher.
    """

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._seen = threading.Event()
        threading.Thread(target=self._look, name="drain", daemon=True).start()

    def seen(self) -> bool:
        """Whether it is."""
        return self._seen.is_set()

    def _look(self) -> None:
        while not self._seen.wait(LOOK_S):
            try:
                drained = state.get_draining_nodes()
            except Exception:  # of gRPC, while the head is away: look again
                continue
            if self._node in drained:
                self._seen.set()
