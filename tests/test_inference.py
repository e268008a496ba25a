"""Joints for images that have none: export, estimating a folder, and the commands for both."""

import csv
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from posegen.cli import app, run_command
from posegen.data import reasons
from posegen.data.formats.annotations import read_annotations
from posegen.data.geometry.pose_maps import Gaussians
from posegen.data.loading.dataset import Shards
from posegen.data.sources.folder import Folder
from posegen.inference import Estimator, annotate, export, open_estimator, write_annotation
from posegen.runs.options import Options, plan_for
from posegen.runs.plan import Plan
from posegen.stage import Canvas
from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store
from posegen.systems.hourglass import Estimation
from tests.runs.test_plan import finish

CPU = torch.device("cpu")
SMALL = {"stacks": 1, "width": 8, "depth": 2, "steps": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished hourglass, as its first step of training would leave it."""
    return finished(tmp_path_factory.mktemp("runs") / "hourglass")


def finished(folder: Path, *given: str) -> Path:
    settings = [*(f"estimation.{name}={value}" for name, value in SMALL.items()), *given]
    made: Plan = plan_for(Options(system="hourglass", run=folder, set=settings))
    finish(made, "estimation")
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export(run, run / "hourglass.safetensors")
    return run / "hourglass.safetensors"


class Brightest(nn.Module):
    """Maps of the images' own brightness, from 0 to 1, for every joint."""

    def forward(self, images):
        grey = (images.mean(dim=1, keepdim=True) + 1) / 2
        return nn.functional.avg_pool2d(grey, 2)[:, None].expand(-1, 1, 18, -1, -1)


BY_LIGHT = Estimator(
    Estimation(stem_stride=2, depth=2, mirrored_too=False),
    Canvas((64, 32), Gaussians()),
    {"estimator": Brightest()},
    CPU,
)


def image(path: Path, size: tuple[int, int], spot: tuple[int, int], brightness: int = 255) -> None:
    """A dark image of a (height, width) with a soft bright spot around (x, y)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    sigma = size[0] / 16
    light = np.exp(-((columns - spot[0]) ** 2 + (rows - spot[1]) ** 2) / (2 * sigma**2)) * brightness
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.repeat(light[..., None], 3, axis=2).astype(np.uint8))


def silent(*_) -> None:
    """No progress."""


def estimated(folder: Path, estimator: Estimator = BY_LIGHT, threshold: float = 0.0):
    return annotate(estimator, folder, threshold=threshold, progress=silent)


@pytest.mark.parametrize(
    ("size", "spot"), [((64, 32), (20, 30)), ((128, 64), (10, 100)), ((200, 150), (75, 40)), ((48, 30), (25, 9))]
)
def test_joints_are_in_the_pixels_of_the_image_as_it_is(tmp_path: Path, size, spot):
    image(tmp_path / "a.png", size, spot)
    (pose,) = estimated(tmp_path).poses.values()
    cell = 2 * np.array([size[1] / 32, size[0] / 64])
    assert pose.joints.shape == (18, 2)
    assert (np.abs(pose.joints - spot) <= 0.5 * cell).all()
    assert pose.visible.all()


@pytest.mark.parametrize(("brightness", "known"), [(255, True), (100, False)])
def test_joints_below_the_threshold_are_unknown(tmp_path: Path, brightness, known):
    image(tmp_path / "a.png", (64, 32), (16, 32), brightness)
    annotated = estimated(tmp_path, threshold=0.6)
    assert annotated.poses["a.png"].visible.tolist() == [known] * 18
    write_annotation(tmp_path / "annotation.csv", annotated)
    (pose,) = read_annotations(tmp_path / "annotation.csv").poses.values()
    assert pose.visible.tolist() == [known] * 18
    assert (pose.joints == -1).all() == (not known)


def test_what_cannot_be_read_is_rejected_with_its_reason(tmp_path: Path):
    image(tmp_path / "in" / "a.png", (64, 32), (16, 32))
    image(tmp_path / "in" / "deep" / "b.jpg", (64, 32), (16, 32))
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "half.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:-20])
    (tmp_path / "in" / "moving.gif").write_bytes(b"GIF89a")
    annotated = estimated(tmp_path / "in")
    assert list(annotated.poses) == ["a.png", "deep/b.jpg"]
    found = {reject.name: reject.reason for reject in annotated.rejects}
    expected = {"empty.jpg": reasons.UNREADABLE, "half.png": reasons.DAMAGED, "moving.gif": reasons.UNSUPPORTED}
    assert found == expected
    rejected = write_annotation(tmp_path / "annotation.csv", annotated)
    assert rejected == tmp_path / "annotation.rejects.csv"
    with rejected.open(newline="") as file:
        assert {row["name"]: row["reason"] for row in csv.DictReader(file)} == expected
    assert write_annotation(tmp_path / "annotation.csv", annotated._replace(rejects=[])) is None
    assert not rejected.exists()


def test_many_images_are_estimated_in_batches_and_each_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("posegen.inference.AT_ONCE", 2)
    for number in range(5):
        image(tmp_path / "images" / f"p{number}.png", (64, 32), (4 + 5 * number, 30))
    image(tmp_path / "elsewhere.png", (64, 32), (4, 4))
    told: list[tuple] = []
    annotated = annotate(BY_LIGHT, tmp_path, threshold=0.0, progress=lambda *what: told.append(what))
    assert [round(float(pose.joints[0, 0]) / 5 - 0.8) for pose in annotated.poses.values()] == [0, 1, 2, 3, 4]
    assert told == [("joints", 2, 5), ("joints", 4, 5), ("joints", 5, 5)]


def test_a_folder_takes_the_annotation(tmp_path: Path):
    for person in range(3):
        for number in range(2):
            image(tmp_path / "in" / f"{person}_{number}.png", (64, 32), (4 + 9 * person, 30 + number))
    write_annotation(tmp_path / "annotation.csv", estimated(tmp_path / "in"))
    listing = Folder(root=tmp_path / "in", joints=tmp_path / "annotation.csv").listing()
    assert len(listing.entries) == 6
    assert not listing.rejects
    for entry in listing.entries:
        assert np.abs(entry.joints[0] - (4 + 9 * int(entry.identity), 30 + int(entry.name[2]))).max() <= 1


def test_an_exported_hourglass_estimates_what_the_run_does(run: Path, exported: Path, block_shards: Path):
    images = Shards(block_shards).images("test", range(8))
    by_run, by_file = (open_estimator(path, CPU) for path in (run, exported))
    assert by_run.stage == by_file.stage
    assert by_file.canvas.size == (64, 32)
    for one, other in zip(by_run(images), by_file(images), strict=True):
        assert np.array_equal(one, other)
    joints, confidence = by_run(images)
    assert (joints.shape, confidence.shape) == ((8, 18, 2), (8, 18))
    assert len(np.unique(joints)) > 18


def test_averages_are_exported_where_there_are_any(tmp_path: Path):
    folder = finished(tmp_path / "run", "estimation.ema_decay=0.5")
    (checkpoint,) = (folder / "stages/estimation").glob("checkpoint_*/networks.safetensors")
    tensors = load_file(checkpoint)
    averages = {key: value + 1 for key, value in tensors.items() if key.startswith("ema.")}
    assert averages
    save_file({**tensors, **averages}, checkpoint)
    export(folder, tmp_path / "file.safetensors")
    written = load_file(tmp_path / "file.safetensors")
    assert all(torch.equal(value, averages[f"ema.{key}"]) for key, value in written.items())


def test_the_file_says_what_it_is(exported: Path):
    with safe_open(exported, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["kind"] == "posegen hourglass 1"
    assert '"stacks": 1' in metadata["settings"]


def test_another_size_can_be_asked_for(exported: Path):
    estimator = open_estimator(exported, CPU, size=(128, 64))
    joints, _ = estimator(np.random.default_rng(0).integers(0, 255, (1, 128, 64, 3), np.uint8))
    assert joints.max() > 64
    with pytest.raises(ValueError, match=r"size 63x32 .*multiples of 2, at least 8"):
        open_estimator(exported, CPU, size=(63, 32))


def changed(exported: Path, folder: Path, **metadata: str) -> Path:
    """A copy of the file that says other things of itself."""
    with safe_open(exported, framework="pt") as file:
        before = file.metadata()
    save_file(load_file(exported), folder / "changed.safetensors", {**before, **metadata})
    return folder / "changed.safetensors"


def test_files_that_are_no_hourglass_are_refused(exported: Path, tmp_path: Path):
    (tmp_path / "text.safetensors").write_text("weights")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for path, message in (
        (tmp_path / "nothing.safetensors", "does not exist.*posegen export"),
        (tmp_path / "text.safetensors", "is no safetensors file"),
        (tmp_path / "other.safetensors", "is not an exported hourglass: it says 'nothing'"),
        (tmp_path, "is no run folder: it has no plan.json"),
    ):
        with pytest.raises(ValueError, match=message):
            open_estimator(path, CPU)
    for settings, message in (
        ('{"size": [64, 32], "colour": 1}', "settings that this version does not have: .*estimation.colour"),
        ('{"size": [64, 32], "stacks": 2, "width": 8, "depth": 2, "stem_stride": 2}', "do not fit the settings"),
    ):
        with pytest.raises(ValueError, match=message):
            open_estimator(changed(exported, tmp_path, settings=settings), CPU)


def test_runs_of_other_systems_and_unfinished_ones_are_refused(run: Path, tmp_path: Path):
    content = read_json(run / "plan.json")
    assert content is not None
    write_json(tmp_path / "other/plan.json", {**content, "settings": {**content["settings"], "system": "vdg"}})
    with pytest.raises(ValueError, match="is a run of vdg; expected one of hourglass"):
        open_estimator(tmp_path / "other", CPU)
    write_json(tmp_path / "begun/plan.json", content)
    with pytest.raises(ValueError, match="stage 'estimation' is not trained"):
        export(tmp_path / "begun", tmp_path / "file.safetensors")
    assert not (tmp_path / "file.safetensors").exists()


def test_folders_without_a_usable_image_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no image"):
        estimated(tmp_path / "nowhere")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ValueError, match=r"none of the 1 images in .* can be used: truncated or damaged"):
        estimated(tmp_path)
    with pytest.raises(ValueError, match="--threshold 2 was given"):
        estimated(tmp_path, threshold=2)


def call(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["posegen", *map(str, words)])
    try:
        run_command(app)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_commands(monkeypatch, capsys, run: Path, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "in" / "1_a.png", (64, 32), (16, 32))
    (tmp_path / "in" / "2_b.png").write_bytes(b"")
    code, out, _ = call(monkeypatch, capsys, "export", "--run", run, "--output", "h.safetensors")
    assert (code, "64x32 pixels" in out) == (0, True)
    words = ("joints", "in", "--estimator", "h.safetensors", "--output", "annotation.csv", "--threshold", "0")
    code, out, _ = call(monkeypatch, capsys, *words, "--device", "cpu")
    assert code == 0
    assert "annotation.csv: 1 images, 100% of their joints known" in out
    assert "1 images cannot be used, see annotation.rejects.csv" in out
    assert list(read_annotations(Path("annotation.csv")).poses) == ["1_a.png"]
    code, _, err = call(monkeypatch, capsys, *words)
    assert (code, "is there already" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "--run", "nowhere", "--output", "a.safetensors"), "there is no run folder 'nowhere'"),
        (("export", "--run", ".", "--output", "a.safetensors"), "it has no plan.json"),
        (("joints", ".", "--estimator", "nowhere", "--output", "a.csv"), "'nowhere' does not exist"),
        (("joints", ".", "--estimator", "text.safetensors", "--output", "a.csv"), "is no safetensors file"),
        (("joints", ".", "--estimator", "text.safetensors", "--output", "a.csv", "--size", "big"), "--size 'big'"),
    ],
)
def test_mistakes_end_with_one_message(monkeypatch, capsys, tmp_path: Path, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("weights")
    code, _, err = call(monkeypatch, capsys, *words)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["text.safetensors"]


@pytest.mark.parametrize("command", ["export", "joints"])
def test_the_commands_have_help_with_an_example(monkeypatch, capsys, command):
    code, out, _ = call(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert f"Example: posegen {command} " in out


def test_a_run_at_a_uri_estimates_on_another_node_as_where_it_was_trained(run: Path, s3_server, two_nodes, tmp_path):
    store = Store.of("s3://runs/hourglass")
    shutil.copytree(run, store.folder)
    store.publish("")
    two_nodes("second")
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 32, 3), np.uint8)
    here, there = (open_estimator(given, CPU)(images) for given in (run, store.uri))
    assert np.array_equal(here[0], there[0])
    assert not list(store.folder.rglob("optimizers.pt"))
    export(store.uri, tmp_path / "file.safetensors")
    assert np.array_equal(open_estimator(tmp_path / "file.safetensors", CPU)(images)[0], here[0])
    with pytest.raises(ValueError, match="'s3://runs/nowhere' is no run folder"):
        open_estimator("s3://runs/nowhere", CPU)
