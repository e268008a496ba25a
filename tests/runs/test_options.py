"""Options to a plan: every mistake that a user can make is said before anything starts."""

import dataclasses
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from posegen.data.formats.posegan_csv import HEADER
from posegen.nets.pretrained import PRETRAINED
from posegen.runs.dry_run import describe_data
from posegen.runs.options import Options, common_size, from_run, kept_options, parse_settings, parse_size, plan_for
from posegen.storage.files import write_json
from posegen.systems.pix2pix import Translation
from tests.data.onnx_file import write_onnx


def options(**given) -> Options:
    return dataclasses.replace(Options(), **given)


def test_the_default_is_vdg_on_the_embedded_people():
    plan = plan_for(Options())
    assert (plan.system.name, plan.system.variant, plan.dataset) == ("vdg", "full", "synthetic")
    assert plan.run == Path("runs/vdg-full-synthetic").absolute()
    assert plan.shard_settings.size == plan.system.size == plan.source.size  # pyright: ignore
    assert plan.score_pairs == 400


def test_settings_reach_their_part_by_dotted_path():
    given = [
        "coarse.steps=7",
        "refinement.alpha=0.5",
        "data.train_people=3",
        "shards.mask_radius=1",
        "pose_maps.radius=3",
    ]
    plan = plan_for(options(set=given))
    flat = plan.settings
    assert (flat["coarse.steps"], flat["refinement.alpha"], flat["data.train_people"]) == (7, 0.5, 3)
    assert (flat["shards.mask_radius"], flat["pose_maps.radius"]) == (1, 3.0)


def test_the_size_reaches_networks_shards_and_drawings():
    plan = plan_for(options(size="128x64"))
    assert plan.system.size == plan.source.size == plan.shard_settings.size == (128, 64)  # pyright: ignore
    assert plan.shard_settings.mask_radius == 4  # PG2's, at PG2's size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"system": "gan"}, "vdg.*pg2"),
        ({"variant": "fll"}, "full"),
        ({"set": ["coarse.stps=3"]}, "coarse.steps"),
        ({"set": ["pose_maps.radius=-1"]}, "at least 0"),
        ({"set": ["nothing.steps=3"]}, "coarse.steps"),
        ({"set": ["data.people=3"]}, "data.train_people"),
        ({"set": ["shards.mask=3"]}, "shards.mask_radius"),
        ({"set": ["coarse.steps=many"]}, "whole number"),
        ({"set": ["coarse.steps"]}, "expected a dotted path"),
        ({"set": ["steps=3"]}, "expected a dotted path"),
        ({"set": ["data.size=64,64"]}, "data.train_people"),
        ({"size": "big"}, "height x width"),
        ({"size": "65x32"}, "multiple"),
        ({"workers": 0}, "at least 1"),
        ({"pairs": -1}, "at least 1"),
        ({"workers": 17}, "more than the batch of stage 'coarse' has pairs"),
        ({"workers": "4:2"}, "the fewest and the most"),
        ({"checkpoint_every": "0m"}, "expected steps, such as 500, or minutes"),
        ({"cache_gb": 0.0}, "must be more than 0"),
        ({"dataset": "market1501"}, "needs --root"),
        ({"dataset": "market1501", "root": Path("/nowhere")}, "/nowhere"),
        ({"dataset": "deepfashion"}, "needs --root"),
        ({"dataset": "deepfashion", "root": Path("/nowhere")}, "/nowhere"),
        ({"dataset": "folder", "root": Path("/nowhere")}, "/nowhere"),
        ({"dataset": "human36m"}, "needs --root"),
        ({"dataset": "human36m", "root": Path("/nowhere")}, r"/nowhere' is not a folder\. Expected one with S1/Videos"),
        ({"dataset": "views", "root": Path("/nowhere")}, r"/nowhere' is not a folder\. Expected .*calibration"),
        ({"root": Path("/nowhere")}, "drawn, not read"),
    ],
)
def test_mistakes_are_named(given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        plan_for(options(**given))


def test_an_empty_folder_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        plan_for(options(dataset="folder", root=tmp_path, size="64x32"))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Two images of the same clothes in either split, in DeepFashion's own layout."""
    for split, item in (("train", "00000001"), ("test", "00000002")):
        rows = []
        for view in ("1_front", "3_back"):
            path = tmp_path / f"img/WOMEN/Dresses/id_{item}/02_{view}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.zeros((256, 256, 3), np.uint8))
            name = f"fasionWOMENDressesid{item}02_{view.replace('_', '')}.jpg"
            rows.append(f"{name}: {[100] * 18}: {[128] * 18}\n")
        (tmp_path / f"fasion-annotation-{split}.csv").write_text(f"{HEADER}\n{''.join(rows)}")
    return tmp_path


def test_deepfashion_takes_its_settings_and_size(fashion: Path):
    plan = plan_for(options(system="pg2", dataset="deepfashion", root=fashion))
    assert plan.system.size == plan.shard_settings.size == (256, 256)
    assert plan.settings["coarse.steps"] == 30_000, "PG2's on DeepFashion"
    assert [entry.split for entry in plan.listing.entries] == ["train", "train", "test", "test"]
    without = options(dataset="deepfashion", root=fashion, set=["data.flat_photos=no"])
    assert plan_for(without).source.flat_photos is False  # pyright: ignore


@pytest.mark.parametrize("system", ["pg2", "vdg"])
def test_a_crop_makes_the_size_and_may_need_another(fashion: Path, system: str):
    cropped = {"dataset": "deepfashion", "root": fashion, "set": ["data.crop=176x256"], "system": system}
    with pytest.raises(ValueError, match=r"size 256x176 .* such as 256x160 or 256x192"):
        plan_for(options(**cropped))
    plan = plan_for(options(**cropped, size="256x192"))
    assert plan.shard_settings.size == (256, 192)
    first = plan.listing.entries[0].joints
    assert first is not None
    assert first[0].tolist() == [88, 100]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Human3.6M of one action and two subjects; a listing opens no video."""
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (60, 17, 3)).astype(np.float32)
    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d={s: {"Walking": points} for s in ("S1", "S9")})
    for subject in ("S1", "S9"):
        for camera in ("54138969", "55011271", "58860488", "60457274"):
            path = tmp_path / subject / "Videos" / f"Walking.{camera}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"a video")
    return tmp_path


def test_human36m_has_a_size_of_its_own_and_rotations(recorded: Path):
    plan = plan_for(options(system="pg2", dataset="human36m", root=recorded))
    assert plan.system.size == plan.shard_settings.size == (256, 256)
    assert len(plan.listing.entries) == 2 * 4 * 3, "frames 0, 25 and 50"
    assert plan.listing.entries[0].azimuth == pytest.approx(69.6, abs=0.05)
    given = ["data.stride=10", "data.pad=0"]
    smaller = plan_for(options(system="pg2", dataset="human36m", root=recorded, size="128x128", set=given))
    assert smaller.shard_settings.size == (128, 128)
    assert len(smaller.listing.entries) == 2 * 4 * 6
    assert smaller.source.pad == 0  # pyright: ignore


def test_synchronized_views_take_their_settings(tmp_path: Path):
    person = {"people": [{"pose_keypoints_2d": [20, 30, 1] * 18}]}
    for take in ("anna", "ben"):
        for camera in ("cam1", "cam2"):
            write_json(tmp_path / take / f"{camera}_json/0001.json", person)
            (tmp_path / take / f"{camera}.mp4").write_bytes(b"a video")
    write_json(tmp_path / "own.json", {"cameras": {"cam1": {"azimuth": 5}, "cam2": {"azimuth": 50}}})
    given = ["data.test=ben", "data.calibration=own.json", "data.layout=body_18"]
    plan = plan_for(options(system="pg2", dataset="views", root=tmp_path, set=given))
    assert plan.system.size == (256, 256)
    assert [(e.identity, e.split, e.azimuth) for e in plan.listing.entries] == [
        *[("anna", "train", 5), ("anna", "train", 50), ("ben", "test", 5), ("ben", "test", 50)]
    ]


def test_values_may_hold_equals_signs():
    assert parse_settings(["data.identity=a=(\\d)"]) == {"data.identity": "a=(\\d)"}
    assert parse_size("128X64") == (128, 64)


def test_later_commands_take_what_is_not_given_from_the_run(tmp_path: Path):
    first = options(system="pg2", set=["coarse.steps=9"], run=tmp_path, seed=4)
    write_json(tmp_path / "options.json", kept_options(first))
    later = from_run(options(run=tmp_path, seed=5))
    assert (later.system, later.set, later.seed) == ("pg2", ["coarse.steps=9"], 5)
    assert from_run(options(run=tmp_path, seed=0)).seed == 0, "given, though it is the default"
    added = from_run(options(run=tmp_path, set=["coarse.steps=8", "coarse.width=4"]))
    assert plan_for(added).settings["coarse.steps"] == 8
    assert plan_for(added).settings["coarse.width"] == 4
    assert plan_for(from_run(options(run=tmp_path))).settings == plan_for(first).settings


def test_a_folder_of_unreadable_images_has_no_size():
    with pytest.raises(ValueError, match="--size"):
        common_size(dataclasses.replace(plan_for(Options()).listing, entries=[]))


def test_without_the_file_a_random_network_stands_in_and_is_said(tmp_path: Path):
    plan = plan_for(options(system="defgan", weights_dir=tmp_path))
    assert plan.settings["generation.features"] == "random-vgg19"
    assert plan.weights == tmp_path
    assert [line for line in describe_data(plan) if "random-vgg19" in line and line.startswith("note")]
    dsc = plan_for(options(system="defgan", variant="dsc", weights_dir=tmp_path))
    assert dsc.settings["generation.features"] == "vgg19"  # not looked at
    assert dsc.system.stand_ins() == []


def test_the_file_is_used_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / PRETRAINED["vgg19"].file).write_bytes(b"features")
    digits = hashlib.sha256(b"features").hexdigest()[:8]
    monkeypatch.setitem(PRETRAINED, "vgg19", PRETRAINED["vgg19"]._replace(sha256=digits))
    plan = plan_for(options(system="defgan", weights_dir=tmp_path))
    assert plan.settings["generation.features"] == "vgg19"
    assert plan.system.stand_ins() == []
    chosen = plan_for(options(system="defgan", weights_dir=tmp_path, set=["generation.features=random-vgg19"]))
    assert chosen.settings["generation.features"] == "random-vgg19"


def test_a_pretrained_network_asked_for_by_name_must_be_there(tmp_path: Path):
    given = options(system="defgan", weights_dir=tmp_path, set=["generation.features=vgg19"])
    with pytest.raises(ValueError, match=r"vgg19-dcbb9e9d.pth is not there. Get it from https.*--weights-dir"):
        plan_for(given)
    with pytest.raises(ValueError, match="expected a folder with pretrained networks"):
        plan_for(options(weights_dir=tmp_path / "none"))


@pytest.fixture
def masks_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """pix2pix reads the target's person mask too."""
    monkeypatch.setattr(Translation, "reads", (*Translation.reads, "target_person_mask"))


def test_masks_are_estimated_where_the_system_reads_them_and_the_data_have_none(
    masks_read: None, fashion: Path, tmp_path: Path
):
    given = {"system": "pix2pix", "weights_dir": tmp_path, "dataset": "deepfashion", "root": fashion}
    plan = plan_for(options(**given))
    assert (plan.shard_settings.person_masks, plan.shard_settings.person_network) == ("estimated", "")
    assert any("estimated, by GrabCut from the joints" in line for line in describe_data(plan))
    other = plan_for(options(**given | {"system": "vdg"}))
    assert other.shard_settings.person_masks == "own", "nobody reads them"
    assert not any("estimated" in line for line in describe_data(other))
    asked = plan_for(options(**given | {"system": "vdg"}, set=["shards.person_masks=estimated"]))
    assert asked.shard_settings.person_masks == "estimated"
    assert asked.shards_fingerprint != other.shards_fingerprint


def test_estimating_can_be_forbidden_and_is_then_explained(masks_read: None, fashion: Path):
    given = options(system="pix2pix", dataset="deepfashion", root=fashion, set=["shards.person_masks=own"])
    with pytest.raises(ValueError, match=r"(?s)reads 'target_person_mask'.*without --set shards.person_masks=own"):
        plan_for(given)


def test_drawn_people_keep_their_own_masks(masks_read: None):
    plan = plan_for(options(system="pix2pix", dataset="synthetic"))
    assert plan.shard_settings.person_masks == "own"
    assert any(stage.reads == Translation.reads for stage in plan.system.stages)


def test_the_network_makes_the_masks_where_its_file_is_there(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = options(dataset="deepfashion", root=fashion, weights_dir=tmp_path, set=["shards.person_masks=estimated"])
    without = plan_for(given)
    (tmp_path / "u2net_human_seg.onnx").write_bytes(network := write_onnx([[1.0, 0.0, -1.0]]))
    with pytest.raises(ValueError, match="sha256 must begin with 01eb6a29"):
        plan_for(given)
    digits = hashlib.sha256(network).hexdigest()[:8]
    monkeypatch.setitem(PRETRAINED, "u2net_human_seg", PRETRAINED["u2net_human_seg"]._replace(sha256=digits))
    plan = plan_for(given)
    assert plan.shard_settings.person_network == plan.settings["shards.person_network"] == digits
    assert plan.shards_fingerprint != without.shards_fingerprint
    assert any("by the network of --weights-dir" in line for line in describe_data(plan))
    with pytest.raises(ValueError, match=r"no setting .shards\.person_network."):
        plan_for(dataclasses.replace(given, set=[f"shards.person_network={digits}"]))
    kept = plan_for(dataclasses.replace(given, set=["shards.person_masks=own"]))
    assert kept.shard_settings.person_network == ""


def test_a_stage_that_goes_on_with_networks_of_other_sizes_is_refused(tmp_path: Path):
    options = Options(system="multistage", variant="joint", run=tmp_path)
    assert plan_for(options).system.variant == "joint"
    with pytest.raises(ValueError, match=r"'joint' starts from the generator of stage 'pose'.*the same sizes"):
        plan_for(dataclasses.replace(options, set=["pose.width=128"]))
    both = ["pose.width=128", "joint.pose_width=128"]
    assert plan_for(dataclasses.replace(options, set=both)).system.stages[-1].name == "joint"


def test_a_system_that_turns_the_view_takes_the_embedded_views():
    assert plan_for(Options(system="multistage")).dataset == "synthetic-views"
    assert plan_for(Options(system="vdg")).dataset == "synthetic"
    with pytest.raises(ValueError, match="'rotation', which nothing before it writes"):
        plan_for(Options(system="multistage", dataset="synthetic"))
