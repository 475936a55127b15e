"""Drains this machine's Ray node when EC2 or Google Cloud announces a spot interruption.

    python spot_watcher.py --address HOST:PORT [--cloud gcp] [--node-id HEX] [--metadata URL]

Runs beside `ray start` on every worker machine (cluster/aws.yaml starts it) and needs
only Ray. EC2 announces the interruption two minutes ahead in the instance metadata, Google half a
minute; Ray's own providers read neither (ray 2.60). After the drain Ray places nothing more on the
node, and a run's workers save their state and exit.

A metadata service that fails, hangs or does not exist counts as no notice. So does a rebalance
recommendation, after which most machines run on for hours.
"""

import argparse
import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from datetime import UTC, datetime
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from ray._raylet import (  # type: ignore[attr-defined]
    GcsClient,  # what `ray drain-node` uses: there is no public way
)
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.util import get_node_ip_address

POLL_S = 1
TIMEOUT_S = 2
"""Time limit of one poll; the service answers within milliseconds."""
DIRECT = build_opener(ProxyHandler({}))
"""Uses no proxy, whatever the environment says: the service is local to the machine."""
TOKEN_TTL_S = 21600
"""The longest lifetime that EC2 allows."""
NOTICE_S = {"aws": 120, "gcp": 30}
"""Each cloud's usual notice; EC2's may name another time."""
MAX_RESPONSE_BYTES = 4096


class Metadata(ABC):
    """A cloud's instance metadata service."""

    default_url: str

    def __init__(self, url: str) -> None:
        self._url = url

    @abstractmethod
    def poll(self) -> float | None:
        """The time until the interruption, s; None without a notice."""

    def seconds_left(self) -> float | None:
        """Return the time until the interruption; None without a notice or an answer."""
        results: list[float | None] = []
        poll = threading.Thread(target=self._poll, args=[results], daemon=True)
        poll.start()
        poll.join(TIMEOUT_S)  # a request's own timeout restarts with every byte received
        return results[0] if results else None

    def _poll(self, results: list[float | None]) -> None:
        with suppress(Exception):  # any failure counts as no notice
            results.append(self.poll())


class GoogleMetadata(Metadata):
    """Google Cloud's.

    https://docs.cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
    """

    default_url = "http://metadata.google.internal"

    def poll(self) -> float | None:
        """The usual notice once the machine is preempted."""
        path = "/computeMetadata/v1/instance/preempted"
        response = _send(Request(f"{self._url}{path}", headers={"Metadata-Flavor": "Google"}))
        return NOTICE_S["gcp"] if response.strip() == "TRUE" else None


class AmazonMetadata(Metadata):
    """EC2's, version 2.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    default_url = "http://169.254.169.254"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._token = ""

    def poll(self) -> float | None:
        """The time that the notice names."""
        try:
            return _parse_notice(self._get("/latest/meta-data/spot/instance-action"))
        except Exception:
            self._token = ""  # it may have expired
            raise

    def _get(self, path: str) -> str:
        if not self._token:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
            self._token = _send(Request(f"{self._url}/latest/api/token", None, ttl, method="PUT"))
        try:
            return _send(
                Request(f"{self._url}{path}", headers={"X-aws-ec2-metadata-token": self._token})
            )
        except HTTPError as error:
            if error.code == 404:  # no notice
                return ""
            raise


def _send(request: Request) -> str:
    with DIRECT.open(request, timeout=TIMEOUT_S) as response:
        text: str = response.read(MAX_RESPONSE_BYTES).decode(errors="replace")
        return text


def _parse_notice(text: str) -> float | None:
    """Return the seconds left of `{"action": "terminate", "time": "2026-01-01T08:22:00Z"}`.

    None for anything else.
    """
    try:
        notice = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(notice, dict) or "action" not in notice:
        return None
    try:
        interruption = datetime.fromisoformat(str(notice.get("time")))
        return max(0.0, (interruption - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return NOTICE_S["aws"]


CLOUDS = {"aws": AmazonMetadata, "gcp": GoogleMetadata}


def local_node_id(gcs: GcsClient) -> str:
    """Return the hex id of this machine's live Ray node. Raises LookupError if there is none."""
    address = get_node_ip_address()
    for node_id, node in gcs.get_all_node_info().items():
        if node.node_manager_address == address and node.state == GcsNodeInfo.ALIVE:
            return str(node_id.hex())
    raise LookupError(f"no live Ray node has the address {address}")


def drain(gcs: GcsClient, node_id: str, seconds_left: float) -> None:
    """Ask Ray to place nothing more on the node. Raises RuntimeError if Ray refuses."""
    deadline_ms = int((time.time() + seconds_left) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, rejection = gcs.drain_node(node_id, reason, "spot interruption notice", deadline_ms)
    if not accepted:
        raise RuntimeError(rejection)


def watch(address: str, node_id: str | None, metadata: Metadata) -> None:
    """Poll until a notice arrives and the node is drained."""
    while True:
        seconds_left = metadata.seconds_left()
        if seconds_left is not None:
            try:
                gcs = GcsClient(address=address)
                drain(gcs, node_id or local_node_id(gcs), seconds_left)
            except Exception as error:  # the head may be unreachable for a while: try again
                print(f"cannot drain this node: {error}", file=sys.stderr, flush=True)
            else:
                print(
                    f"draining this node: the cloud reclaims the machine in {seconds_left:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                return
        time.sleep(POLL_S)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--address", required=True, help="HOST:PORT of the Ray head")
    parser.add_argument(
        "--node-id",
        help="hex id of the Ray node, for a machine with several; default: found by IP",
    )
    parser.add_argument("--cloud", choices=CLOUDS, default="aws", help="whose machine this is")
    parser.add_argument("--metadata", help="URL of the metadata service")
    arguments = parser.parse_args()
    cloud = CLOUDS[arguments.cloud]
    metadata = cloud(arguments.metadata or cloud.default_url)
    watch(arguments.address, arguments.node_id, metadata)


if __name__ == "__main__":
    main()
