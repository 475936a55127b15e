"""Drains this machine's Ray node when EC2 announces that it takes the spot machine back.

    python spot_watcher.py --address HOST:PORT [--node-id HEX] [--metadata URL]

Runs beside `ray start` on every worker machine (cluster/aws.yaml starts it) and needs Ray alone.
EC2 says so two minutes ahead, in the instance metadata; Ray's own AWS provider does not look
(ray 2.60). Ray then places nothing more here, and a run's workers save their state and leave.

A metadata service that errs, hangs or is not there means no notice. A mere rebalance
recommendation is no notice either: most machines live on for hours after it.
"""

import argparse
import json
import sys
import threading
import time
from datetime import UTC, datetime
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from ray._raylet import (  # type: ignore[attr-defined]
    GcsClient,  # what `ray drain-node` uses: there is no public way
)
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.util import get_node_ip_address

METADATA = "http://169.254.169.254"
LOOK_S = 1
TIMEOUT_S = 2
"""Of a look; the service answers within milliseconds."""
DIRECTLY = build_opener(ProxyHandler({}))
"""The service is this machine's own: no proxy, whatever the environment says."""
TOKEN_TTL_S = 21600
"""The longest that EC2 gives."""
NOTICE_S = 120
"""Where the notice has no time that can be read: EC2 gives two minutes."""


class Metadata:
    """The instance metadata service, version 2.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    def __init__(self, url: str) -> None:
        self._url, self._token = url, ""

    def seconds_left(self) -> float | None:
        """Until the machine is taken; None where that is not announced, or nobody answers."""
        found: list[str] = []
        look = threading.Thread(target=self._look, args=[found], daemon=True)
        look.start()
        look.join(TIMEOUT_S)  # a request's own time-out begins anew with every byte
        return _seconds_left(found[0]) if found else None

    def _look(self, found: list[str]) -> None:
        try:
            found.append(self._get("/latest/meta-data/spot/instance-action"))
        except Exception:  # whatever it says or does instead, it is no notice
            self._token = ""  # it may have expired

    def _get(self, path: str) -> str:
        if not self._token:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
            self._token = _ask(Request(f"{self._url}/latest/api/token", None, ttl, method="PUT"))
        try:
            return _ask(
                Request(f"{self._url}{path}", headers={"X-aws-ec2-metadata-token": self._token})
            )
        except HTTPError as error:
            if error.code == 404:  # no notice
                return ""
            raise


def _ask(request: Request) -> str:
    with DIRECTLY.open(request, timeout=TIMEOUT_S) as answer:
        text: str = answer.read(4096).decode(errors="replace")
        return text


def _seconds_left(said: str) -> float | None:
    """Of `{"action": "terminate", "time": "2026-01-01T08:22:00Z"}`; None for anything else."""
    try:
        notice = json.loads(said)
    except (ValueError, RecursionError):
        return None
    if not isinstance(notice, dict) or "action" not in notice:
        return None
    try:
        taken = datetime.fromisoformat(str(notice.get("time")))
        return max(0.0, (taken - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return NOTICE_S


def own_node(gcs: GcsClient) -> str:
    """Hex id of the Ray node that lives on this machine. Raises LookupError where none does."""
    here = get_node_ip_address()
    for node_id, node in gcs.get_all_node_info().items():
        if node.node_manager_address == here and node.state == GcsNodeInfo.ALIVE:
            return str(node_id.hex())
    raise LookupError(f"no living Ray node has the address {here}")


def drain(gcs: GcsClient, node_id: str, seconds_left: float) -> None:
    """Ask Ray to place nothing more on the node. Raises RuntimeError where it refuses."""
    deadline_ms = int((time.time() + seconds_left) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = gcs.drain_node(node_id, reason, "spot interruption notice", deadline_ms)
    if not accepted:
        raise RuntimeError(why)


def watch(address: str, node_id: str | None, metadata: Metadata) -> None:
    """Until the node is drained."""
    while True:
        seconds_left = metadata.seconds_left()
        if seconds_left is not None:
            try:
                gcs = GcsClient(address=address)
                drain(gcs, node_id or own_node(gcs), seconds_left)
            except Exception as error:  # the head may be away: the notice stands, so try again
                print(f"cannot drain: {error}", file=sys.stderr, flush=True)
            else:
                print(f"draining: taken in {seconds_left:.0f} s", file=sys.stderr, flush=True)
                return
        time.sleep(LOOK_S)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--address", required=True, help="the head's, HOST:PORT")
    parser.add_argument("--node-id", help="where a machine has several Ray nodes; hex")
    parser.add_argument("--metadata", default=METADATA, help="URL of the metadata service")
    given = parser.parse_args()
    watch(given.address, given.node_id, Metadata(given.metadata))


if __name__ == "__main__":
    main()
