"""Watch for the cloud's notice that a spot node will be taken away, and drain the node so that training can save.

`posegen watch-preemption` runs beside Ray on every spot node (cluster.yaml starts it). On a notice it drains the node
with its deadline: Ray schedules nothing new there, and `ray.train` informs its workers. Asked every 2 seconds:

- AWS, with a session token (IMDSv2): `spot/instance-action`, present about two minutes before the end, with its time.
  A rebalance recommendation is only logged: such a node often lives for hours.
- Google: `instance/preempted`, 30 seconds before the end.
"""

import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

INTERVAL = 2.0  # seconds between two requests
GOOGLE_NOTICE = 30.0  # seconds, documented
TOKEN_LIFE = 21600  # seconds, the longest that AWS allows
STARTUP = 3.0  # seconds that `ray drain-node` takes to start, after which its deadline counts
TIMEOUT = 2.0  # seconds for an answer of the metadata server, which is on the node itself

log = logging.getLogger("posegen.preemption")


@dataclass(frozen=True)
class Notice:
    """The notice that the node will end."""

    deadline: float  # UNIX time in seconds
    text: str


class Amazon:
    """AWS's metadata server."""

    def __init__(self, endpoint: str = "http://169.254.169.254") -> None:
        self.endpoint = endpoint
        self._token = ""
        self._token_until = 0.0
        self._recommended = False

    def look(self) -> Notice | None:
        """Return the notice, None while there is none. Raises OSError where the server does not answer."""
        answer = self._get("spot/instance-action")
        if answer is not None:
            action = json.loads(answer)
            deadline = datetime.fromisoformat(action["time"].replace("Z", "+00:00")).timestamp()
            return Notice(deadline, f"AWS will {action['action']} this spot node at {action['time']}")
        if not self._recommended and self._get("events/recommendations/rebalance") is not None:
            self._recommended = True
            log.info("AWS says that this node is at higher risk; it stays in use until the notice of its end")
        return None

    def _get(self, path: str) -> str | None:
        if time.time() > self._token_until - 60:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE)}
            self._token = _request(f"{self.endpoint}/latest/api/token", life, method="PUT") or ""
            self._token_until = time.time() + TOKEN_LIFE
        try:
            return _request(f"{self.endpoint}/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 401:  # AWS discarded the token: ask for another next time
                self._token_until = 0.0
            raise


class Google:
    """Google Cloud's metadata server."""

    def __init__(self, endpoint: str = "http://metadata.google.internal") -> None:
        self.endpoint = endpoint

    def look(self) -> Notice | None:
        """Return the notice, None while there is none. Raises OSError where the server does not answer."""
        answer = _request(f"{self.endpoint}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        if answer is None or answer.strip().upper() != "TRUE":
            return None
        return Notice(time.time() + GOOGLE_NOTICE, "Google Cloud preempts this node")


def _request(address: str, headers: dict[str, str], *, method: str = "GET") -> str | None:
    """Return a page's text, None where there is no such page (404)."""
    request = urllib.request.Request(address, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is never behind a proxy
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def watch(look: Callable[[], Notice | None], act: Callable[[Notice], None], *, interval: float = INTERVAL) -> Notice:
    """Call `look` until it returns a notice and `act` succeeds on it; return the notice. Failures are logged."""
    failed = ""
    while True:
        try:
            notice = look()
            if notice is not None:
                log.warning("%s", notice.text)
                act(notice)
                return notice
            failed = ""
        except Exception as error:  # no error of a cluster in trouble may end the watch
            if str(error) != failed:  # once, not every two seconds
                log.warning("%s: %s", type(error).__name__, error)
            failed = str(error)
        time.sleep(interval)


def drain(notice: Notice, *, address: str | None = None, node: str | None = None) -> None:
    """Drain a Ray node by `ray drain-node`: by default this one, in the cluster that runs on it.

    Raises RuntimeError where this host has no node in the cluster, or Ray refuses.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    left = max(0, int(notice.deadline - time.time() - STARTUP))
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={address}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", f"--reason-message={notice.text}"]
    command += [f"--deadline-remaining-seconds={left}", *([f"--node-id={node}"] if node else [])]
    environment = {**os.environ, "RAY_ADDRESS": address}  # without a node id the command joins the cluster to learn it
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise RuntimeError(f"Ray does not drain {node or 'this node'}: {reason}")
    log.warning("%s is drained; it ends in %.0f s", node or "this node", notice.deadline - time.time())


def watch_preemption(cloud: Literal["aws", "gcp"], *, endpoint: str | None = None) -> None:
    """Watch this node, drain it on the notice of its end, and return."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    kind = {"aws": Amazon, "gcp": Google}[cloud]
    server = kind(endpoint) if endpoint else kind()
    log.info("watching %s for the notice that this node ends", server.endpoint)
    watch(server.look, drain)
