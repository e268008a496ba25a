"""What the tests share: images of blocks with joints, in shards, made without Ray; an S3 server; two nodes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from posegen.data.listing import Entry, Listing, LoadedImage, Source
from posegen.data.shards.making import ShardSettings, made_from, make_shard, plan_works
from posegen.data.sources.synthetic import SyntheticViews
from posegen.storage.store import Store

SHARED_DATA = Path(__file__).parents[1].parent / "shared/data"  # real files; tests skip where they are absent


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Each person is a coloured block that stands somewhere else in each image, with joints around it."""

    name: ClassVar[str] = "blocks"
    people: int = 6
    images: int = 4
    size: tuple[int, int] = (64, 32)

    def listing(self) -> Listing:
        entries = [
            Entry(
                f"{person:04d}_{number}.png", "test" if person % 3 == 2 else "train", str(person), str(person), "", ""
            )
            for person in range(self.people)
            for number in range(self.images)
        ]
        return Listing(entries, fingerprint=repr(self))

    def load(self, entry: Entry) -> LoadedImage:
        random = np.random.default_rng([int(part) for part in entry.name[:-4].split("_")])
        colour = np.random.default_rng(int(entry.identity)).integers(0, 255, 3)
        height, width = self.size
        left, top = random.integers(1, width // 2), random.integers(1, height // 2)
        image = np.full((height, width, 3), 40, np.uint8)
        image[top : top + height // 3, left : left + width // 3] = colour
        joints = np.stack([left + random.uniform(0, width / 3, 18), top + random.uniform(0, height / 3, 18)], axis=1)
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + height // 3, left : left + width // 3] = 1
        return LoadedImage(cv2.imencode(".png", image)[1].tobytes(), joints.astype(np.float32), np.ones(18, bool), mask)


@pytest.fixture(scope="session")
def block_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete folder of 64x32 shards: 4 training people and 2 test people, 4 images each."""
    return shards_of(Blocks(), tmp_path_factory.mktemp("blocks") / "shards")


@pytest.fixture(scope="session")
def view_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of groups of views: 1 training person and 2 test people, 2 instants each, seen by 4 cameras."""
    source = SyntheticViews(train_people=1, test_people=2, instants_per_person=2)
    return shards_of(source, tmp_path_factory.mktemp("views") / "shards")


def shards_of(source: Source, folder: Path, *, images_per_shard: int = 2000) -> Path:
    """Complete 64x32 shards of a source, made without Ray."""
    from posegen.data.shards.preparing import _conclude

    folder.mkdir(parents=True)
    listing = source.listing()
    settings = ShardSettings(size=(64, 32), mask_radius=2, images_per_shard=images_per_shard)
    record = made_from(listing, settings, fingerprint=source.name)
    works, rejects = plan_works(listing, settings.images_per_shard)
    summaries = [make_shard(work, source, folder, settings, record) for work in works]
    _conclude(Store.of(folder.parent), source.name, record, rejects, summaries)
    return folder


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run of the pipeline that nothing interrupted, and what it printed. For all who only compare with it."""
    from tests.test_pipeline import finish, start

    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, finish(start(run))


@pytest.fixture(scope="module")
def s3_server():
    """An S3 server's address, with one bucket, as the environment names it to pyarrow."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    boto3.client("s3").create_bucket(Bucket="runs")
    yield given["AWS_ENDPOINT_URL"]
    server.stop()
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """A function that makes this process be one of two nodes, each with a cache of its own."""

    def become(node: str) -> None:
        monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / node))

    become("first")
    return become
