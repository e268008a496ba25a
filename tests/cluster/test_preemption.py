"""The watcher of spot nodes, against a server that speaks the clouds' protocols, and once against Ray."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from posegen.cluster.preemption import Amazon, Google, Notice, watch

TOKEN = "secret-token"
END = "2030-01-02T03:04:05Z"


class Metadata(BaseHTTPRequestHandler):
    """Both clouds' metadata servers, as strict as they are: no token, no header, no answer."""

    server: "Cloud"

    def do_PUT(self) -> None:
        life = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        right = self.path == "/latest/api/token" and 1 <= int(life or 0) <= 21600
        self.server.tokens += right
        self._answer(200 if right else 400, f"{TOKEN}{self.server.tokens}")

    def do_GET(self) -> None:
        if self.path.startswith("/computeMetadata/v1/"):
            right = self.headers.get("Metadata-Flavor") == "Google"
        else:
            right = self.headers.get("X-aws-ec2-metadata-token") == f"{TOKEN}{self.server.tokens}"
        said = self.server.pages.get(self.path)
        self._answer(*((200, said) if said else (404, "")) if right else (401, ""))

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Cloud(HTTPServer):
    """A metadata server on a free port of this machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Metadata)
        self.pages: dict[str, str] = {"/computeMetadata/v1/instance/preempted": "FALSE"}
        self.tokens = 0
        self.address = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_aws_gives_the_time_of_the_end(cloud: Cloud):
    amazon = Amazon(cloud.address)
    assert amazon.look() is None
    cloud.pages["/latest/meta-data/spot/instance-action"] = json.dumps({"action": "terminate", "time": END})
    notice = amazon.look()
    assert notice is not None
    assert notice.deadline == 1893553445.0  # date -u -d 2030-01-02T03:04:05Z +%s
    assert "terminate" in notice.text
    assert cloud.tokens == 1  # one token serves many looks


def test_a_token_that_aws_threw_away_is_replaced(cloud: Cloud):
    amazon = Amazon(cloud.address)
    amazon.look()
    cloud.tokens += 1  # the old one is refused from now on
    with pytest.raises(OSError, match="401"):
        amazon.look()
    assert amazon.look() is None


def test_a_rebalance_recommendation_is_noted_once_and_ends_nothing(cloud: Cloud, caplog: pytest.LogCaptureFixture):
    cloud.pages["/latest/meta-data/events/recommendations/rebalance"] = json.dumps({"noticeTime": END})
    amazon = Amazon(cloud.address)
    with caplog.at_level(logging.INFO, "posegen.preemption"):
        assert amazon.look() is None
        assert amazon.look() is None
    assert caplog.text.count("higher risk") == 1


def test_google_gives_thirty_seconds(cloud: Cloud):
    google = Google(cloud.address)
    assert google.look() is None
    cloud.pages["/computeMetadata/v1/instance/preempted"] = "TRUE"
    notice = google.look()
    assert notice is not None
    assert notice.deadline == pytest.approx(time.time() + 30, abs=1)


def test_a_proxy_of_the_environment_is_not_asked(cloud: Cloud, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Google(cloud.address).look() is None


def test_watching_goes_on_through_failures_until_ray_has_been_told(caplog: pytest.LogCaptureFixture):
    notice = Notice(time.time() + 120, "the end")
    looks = iter([OSError("no answer"), OSError("no answer"), None, notice, notice])
    refused = [True]

    def look() -> Notice | None:
        seen = next(looks)
        if isinstance(seen, OSError):
            raise seen
        return seen

    def act(_: Notice) -> None:
        if refused:
            refused.pop()
            raise RuntimeError("the head is away")

    assert watch(look, act, interval=0) is notice
    assert caplog.text.count("no answer") == 1
    assert "the head is away" in caplog.text
    assert next(looks, None) is None  # it ended with the look that could be acted on


def test_nobody_there_is_no_notice():
    with Cloud() as gone:
        address = gone.address
    with pytest.raises(OSError, match="refused"):
        Amazon(address).look()


WORKER = """
import os, time, ray
from posegen.cluster.preemption import Notice, drain
from ray.cluster_utils import Cluster

os.environ["RAY_AUTH_MODE"] = "disabled"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(second.node_id, soft=False))
class Work:  # a node without work leaves at once when it is drained
    def ready(self):
        return True

work = Work.remote()
ray.get(work.ready.remote())
deadline = time.time() + 60
drain(Notice(deadline, "a test"), address=cluster.address, node=second.node_id)
draining = ray._private.state.state.get_draining_nodes()
early = deadline - draining.pop(second.node_id) / 1000
print("drained", -2 < early < 4 and not draining, ray.get(work.ready.remote()))
try:
    drain(Notice(deadline, "a test"), address=cluster.address, node="no id")
except RuntimeError as error:
    print("refused", error)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.long
def test_ray_knows_the_drained_node_and_its_deadline():
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKER], capture_output=True, text=True, timeout=120, env=environment
    )
    assert "drained True True" in done.stdout, done.stdout + done.stderr
    assert "refused Ray does not drain no id" in done.stdout, done.stdout + done.stderr
    assert "Invalid hex ID" in done.stdout
