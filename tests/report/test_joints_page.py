"""The report of systems that predict joints, and of groups of views: panels, cards and words."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from posegen.data.loading.dataset import Shards
from posegen.evaluation.scoring import score_chunk, summary, synthesized, training_means
from posegen.report.drawing import cut_sheet
from posegen.report.page import write_report
from posegen.report.panels import FIXED, GROUPS, every_view, make_cases, pairs_by_group, ranked, result_images
from posegen.stage import System
from tests import posing_systems

LAST_OF_POSES = ["estimated pose", "true pose", "overlay"]


def written(system: System, shards: Path, run: Path) -> tuple[str, dict]:
    """The page of a scored run, and its metrics.json's content."""
    trained, data = posing_systems.trained(system), Shards(shards)
    table = score_chunk(trained, data, range(24), training_means(system, data))
    persons = [name[:4] for name in table["target"]]
    (run / "scores").mkdir(parents=True)
    parquet.write_table(pa.table({**table, "person": persons}), run / "scores/pairs.parquet")
    metrics = {"fingerprint": "", "pairs": len(persons), "pairs_available": len(persons), **summary(table, persons)}
    (run / "scores/metrics.json").write_text(json.dumps(metrics))
    plan = {"system": system.name, "variant": "full", "dataset": "views", "stages": []}
    path = write_report(
        run / "report", trained=trained, data=Shards(shards), scores=run / "scores", stages=run / "stages", plan=plan,
        reproduce=[], fingerprint="",
    )  # fmt: skip
    return path.read_text(encoding="utf-8"), metrics


def labels(system: System, shards: Path) -> list[str]:
    table = {"pair": np.array([3]), "source": np.array(["a"]), "target": np.array(["b"])}
    (case,) = make_cases(posing_systems.trained(system), Shards(shards), table, [0], [])
    return [panel.label for panel in case.panels]


def test_panels_of_a_system_with_both(view_shards):
    assert labels(posing_systems.painting(), view_shards) == [
        "source", "source pose", "predicted pose", "target pose", "target mask", "foreground image", "result", "target",
        "difference",
    ]  # fmt: skip


def test_panels_of_a_system_without_images(view_shards):
    assert labels(posing_systems.posing(), view_shards) == LAST_OF_POSES
    looking = dataclasses.replace(posing_systems.painting(), image="")
    assert labels(looking, view_shards) == ["source", "foreground image", "painted image", *LAST_OF_POSES]


def test_estimated_and_true_poses_are_drawn_where_they_are(block_shards):
    """Without an error both drawings are the same; with one, only the true pose stays."""

    def drawn(shift: tuple[float, float]) -> dict[str, np.ndarray]:
        trained = posing_systems.trained(posing_systems.posing(shift))
        table = {"pair": np.array([3]), "source": np.array(["a"]), "target": np.array(["b"])}
        (case,) = make_cases(trained, Shards(block_shards), table, [0], [])
        return {panel.label: panel.image for panel in case.panels}

    right, wrong = drawn((0.0, 0.0)), drawn((4.0, 0.0))
    np.testing.assert_array_equal(right["estimated pose"], right["true pose"])
    np.testing.assert_array_equal(wrong["true pose"], right["true pose"])
    assert (wrong["estimated pose"] != wrong["true pose"]).any()
    assert wrong["overlay"].shape == (256, 128, 3)


def test_page_of_a_system_without_images(block_shards, tmp_path):
    page, metrics = written(posing_systems.posing(), block_shards, tmp_path)
    assert metrics["scores"].keys() == {"pose_error", "pck", "pckh"}
    assert metrics["baselines"].keys() == {"source", "mean"}
    assert "The pairs with the lowest pose error" in page
    assert "mask-L1" not in page
    assert "the source&#39;s own joints" in page
    assert "Every view" not in page
    sheet = cv2.imread(str(tmp_path / "report/sample_sheet.png"))
    cells = cut_sheet(sheet, 128, 64)
    assert [len(row) for row in cells] == [3] * FIXED


def test_page_of_a_system_with_both(view_shards, tmp_path):
    page, metrics = written(posing_systems.painting(), view_shards, tmp_path)
    assert metrics["stages"].keys() == metrics["stage_intervals"].keys() == {"foreground_image"}
    low, high = metrics["stage_intervals"]["foreground_image"]["mask_l1"]
    assert low <= metrics["stages"]["foreground_image"]["mask_l1"] <= high < metrics["baselines"]["source"]["mask_l1"]
    assert "pose_error" not in metrics["baselines"]["similarity"]
    words = " ".join(page.split())
    assert "The pairs with the lowest mask-L1" in words
    assert '<div class="value">5.00 <small>px</small></div>' in words
    assert '<th scope="row">foreground image</th>' in words
    assert "the source image itself; of joints: the source&#39;s own joints" in words
    assert words.count('class="photo made"') == GROUPS * 3
    assert "+39.9°" in words  # from the camera at 69.6 degrees to that at 109.5


def test_cases_without_images_are_ranked_by_the_pose_error():
    table = {"pair": np.arange(4), "pose_error": np.array([2.0, np.nan, 1.0, 3.0]), "person": np.array(list("abcd"))}
    assert ranked(table) == [2, 0, 3]


def test_every_view_is_from_one_source_to_all_others_by_rotation(view_shards):
    shards = Shards(view_shards)
    rows = every_view(posing_systems.trained(posing_systems.painting()), shards)
    assert len(rows) == GROUPS
    assert len({row.name.rpartition("_v")[0] for row in rows}) == GROUPS
    assert {row.name.rpartition("_v")[2] for row in rows} == {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}
    azimuths = (69.6, -70.9, 109.5, -115.7)
    for row in rows:
        view = int(row.name.rpartition("_v")[2][0])
        turns = sorted(180 - (180 - (azimuths[n] - azimuths[view])) % 360 for n in range(4) if n != view)
        assert [each.rotation for each in row.views] == pytest.approx(turns, abs=1e-3)
        assert all((each.made == row.source).all() for each in row.views)  # what this system makes
        assert all((each.true != row.source).any() for each in row.views)


def test_every_view_is_the_same_draw_again(view_shards):
    first, again = (every_view(posing_systems.trained(posing_systems.posing()), Shards(view_shards)) for _ in range(2))
    assert [row.name for row in first] == [row.name for row in again]


def test_without_azimuths_there_is_no_such_section(block_shards):
    assert every_view(posing_systems.trained(posing_systems.posing()), Shards(block_shards)) == []


def test_pairs_of_a_group_are_by_source_in_the_order_of_azimuths(view_shards):
    test = Shards(view_shards).split("test")
    groups = pairs_by_group(Shards(view_shards))
    assert [len(sources) for sources in groups.values()] == [4] * 4
    assert sorted(place for sources in groups.values() for pairs in sources for place in pairs) == list(range(48))
    for name, sources in groups.items():
        rows = [np.stack(test.pair_rows(np.array(pairs))).tolist() for pairs in sources]
        assert all(len(set(source)) == 1 for source, _ in rows)
        assert all(test.group(row) == name for source, target in rows for row in [*source, *target])
        azimuths = [float(test.azimuths[source[0]]) for source, _ in rows]
        assert azimuths == sorted(azimuths)


def test_the_result_without_an_image_is_the_target_with_the_predicted_skeleton(block_shards):
    trained = posing_systems.trained(posing_systems.posing())
    raw, columns = next(iter(synthesized(trained, Shards(block_shards), [0, 5])))
    images = result_images(trained.system, raw, columns)
    targets = raw["target_image"].numpy()
    assert all(image.shape == (64, 32, 3) for image in images)
    changed = [(image != target).any(axis=2).mean() for image, target in zip(images, targets, strict=True)]
    assert all(0.01 < share < 0.9 for share in changed)
