"""A whole run whose storage is an S3 server on this machine: killed once, gone on with and looked at by other nodes."""

import os
import signal
from pathlib import Path

import pytest

from posegen.storage.store import Store
from posegen.training.checkpoints import newest_name
from tests.test_pipeline import STEPS, finish, start, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def networks(store: Store, stage: str) -> bytes:
    name = newest_name(store, f"stages/{stage}")
    return store.fetch(f"stages/{stage}/{name}/networks.safetensors").read_bytes()


def test_a_whole_run_at_a_uri_over_several_nodes(uninterrupted: tuple[Path, str], s3_server, two_nodes):
    place = "s3://runs/whole"
    store = Store.of(place)
    first = start(place)
    wait_for(lambda: newest_name(store, "stages/refinement"), first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert newest_name(store, "stages/refinement") < f"checkpoint_{STEPS:08d}", "it was too late to kill"
    two_nodes("second")
    output = finish(start(place))
    assert "shards: done already" in output
    assert "coarse: done already" in output
    names = store.sizes()
    assert {"plan.json", "options.json", "scores/metrics.json", "report/index.html", "mlflow.db"} <= names.keys()
    assert not [name for name in names if name.endswith(".tmp") or name.startswith(("lease", "scores/parts"))]
    two_nodes("third")
    output = finish(start(place))
    assert "starting Ray" not in output
    assert (store.folder / "report" / "index.html").is_file(), "the page is brought to the node that asks"
    local, _ = uninterrupted
    for stage in ("coarse", "refinement"):
        assert networks(store, stage) == networks(Store.of(local), stage), stage
