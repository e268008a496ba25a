"""Watches for the cloud's notice that this node will be taken away, and tells Ray, so that training can save in time.

Runs beside Ray on every spot node (`posegen watch-preemption --cloud aws`, started in cluster.yaml). On a notice the
node is drained with its deadline: Ray places nothing new on it, and the workers of `ray.train` get to know. What is
asked, every 2 seconds:

- AWS, with a session token (IMDSv2): `spot/instance-action`, which is there about two minutes before the end and gives
  the time of it. A rebalance recommendation is only noted: such a node often lives for hours.
- Google: `instance/preempted`, 30 seconds before the end.
"""

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

INTERVAL = 2.0  # seconds between two looks
GOOGLE_NOTICE = 30.0  # seconds, documented
TOKEN_LIFE = 21600  # seconds, the longest that AWS allows
PATIENCE = 2.0  # seconds for an answer of the metadata server, which is on the node itself

log = logging.getLogger("posegen.preemption")


@dataclass(frozen=True)
class Notice:
    """The node will end."""

    deadline: float  # UNIX time in seconds
    text: str


class Amazon:
    """The notices of AWS's metadata server."""

    def __init__(self, endpoint: str = "http://169.254.169.254") -> None:
        self.endpoint = endpoint
        self._token = ""
        self._token_until = 0.0
        self._recommended = False

    def look(self) -> Notice | None:
        """The notice, None while there is none. OSError where the server does not answer."""
        said = self._get("spot/instance-action")
        if said is not None:
            action = json.loads(said)
            deadline = datetime.fromisoformat(action["time"].replace("Z", "+00:00")).timestamp()
            return Notice(deadline, f"AWS will {action['action']} this spot node at {action['time']}")
        if not self._recommended and self._get("events/recommendations/rebalance") is not None:
            self._recommended = True
            log.info("AWS says that this node is at higher risk; it goes on until the notice of its end")
        return None

    def _get(self, path: str) -> str | None:
        if time.time() > self._token_until - 60:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE)}
            self._token = _fetch(f"{self.endpoint}/latest/api/token", life, method="PUT") or ""
            self._token_until = time.time() + TOKEN_LIFE
        try:
            return _fetch(f"{self.endpoint}/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 401:  # the token was thrown away: another next time
                self._token_until = 0.0
            raise


class Google:
    """The notices of Google Cloud's metadata server."""

    def __init__(self, endpoint: str = "http://metadata.google.internal") -> None:
        self.endpoint = endpoint

    def look(self) -> Notice | None:
        """The notice, None while there is none. OSError where the server does not answer."""
        said = _fetch(f"{self.endpoint}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        if said is None or said.strip().upper() != "TRUE":
            return None
        return Notice(time.time() + GOOGLE_NOTICE, "Google Cloud preempts this node")


def _fetch(address: str, headers: dict[str, str], *, method: str = "GET") -> str | None:
    """What is there; None where nothing is (404)."""
    request = urllib.request.Request(address, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is never behind a proxy
    try:
        with opener.open(request, timeout=PATIENCE) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def watch(look: Callable[[], Notice | None], act: Callable[[Notice], None], *, interval: float = INTERVAL) -> Notice:
    """Looks until there is a notice and `act` on it went well; returns the notice. Failures are logged, not raised."""
    failed = ""
    while True:
        try:
            notice = look()
            if notice is not None:
                log.warning("%s", notice.text)
                act(notice)
                return notice
            failed = ""
        except Exception as error:  # what a cluster in trouble raises is no reason to stop watching
            if str(error) != failed:  # once, not every two seconds
                log.warning("%s: %s", type(error).__name__, error)
            failed = str(error)
        time.sleep(interval)


def drain(notice: Notice, *, address: str | None = None, node: str | None = None) -> None:
    """Tells Ray that a node ends: by default this one, in the cluster that runs on it.

    It is the call behind `ray drain-node`, which Ray does not promise to keep. RuntimeError where this host has no node
    of its own in the cluster, or Ray refuses.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die, get_node_ip_address
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated import autoscaler_pb2

    gcs = GcsClient(address=canonicalize_bootstrap_address_or_die(address or "auto"))
    if node is None:
        mine = get_node_ip_address()
        alive = [
            identity.hex()
            for identity, info in gcs.get_all_node_info(timeout=10).items()
            if info.node_manager_address == mine and not info.state
        ]
        if len(alive) != 1:
            raise RuntimeError(f"{len(alive)} living Ray nodes have the address {mine}, expected one")
        node = alive[0]
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # pyright: ignore[reportAttributeAccessIssue]
    accepted, why = gcs.drain_node(node, reason, notice.text, int(notice.deadline * 1000))
    if not accepted:
        raise RuntimeError(f"Ray does not drain node {node}: {why}")
    log.warning("node %s is drained; it ends in %.0f s", node, notice.deadline - time.time())


def watch_preemption(cloud: Literal["aws", "gcp"], *, endpoint: str | None = None) -> None:
    """Watches this node and drains it on the notice of its end; returns after that."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    kind = {"aws": Amazon, "gcp": Google}[cloud]
    server = kind(endpoint) if endpoint else kind()
    log.info("watching %s for the notice that this node ends", server.endpoint)
    watch(server.look, drain)
