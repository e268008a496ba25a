"""Comparisons of hand-made run folders: differences by hand, and everything that cannot be compared."""

import csv
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from rich.console import Console

from posegen.data.loading.dataset import Shards
from posegen.evaluation.comparison import compare_runs, differing_settings
from posegen.report.comparison_page import check_output, fixed_samples, tables, write_comparison
from posegen.report.drawing import sheet
from posegen.report.panels import chosen_rows
from posegen.storage.files import digest
from posegen.storage.store import LAYOUT, Store

# More persons than are needed for resampling them; four pairs each.
PERSONS = [person for person in "abcdef" for _ in range(4)]
SOURCE = np.linspace(0.3, 0.5, len(PERSONS))


def a_run(
    folder: Path, scores: dict[str, np.ndarray], *, source: np.ndarray = SOURCE, mean: float = 0.4, **plan
) -> Path:
    """A scored run's folder: `scores` are columns of the result, the baselines are given as constants or a column."""
    count = len(next(iter(scores.values())))
    table = {
        "pair": np.arange(count),
        "source": [f"{person}_{number}" for number, person in enumerate(PERSONS[:count])],
        "target": [f"{person}_{number + 1}" for number, person in enumerate(PERSONS[:count])],
        "person": PERSONS[:count],
        "finite": np.ones(count, dtype=bool),
        **scores,
        **{f"source.{name}": source[:count] for name in scores},
        **{f"mean.{name}": np.full(count, mean) for name in scores},
    }
    (folder / "scores").mkdir(parents=True)
    parquet.write_table(pa.table(table), folder / "scores/pairs.parquet")
    ends = {name: [0.1, 0.9] for name in scores}
    means = {
        name: float(values[np.isfinite(values)].mean()) for name, values in scores.items() if not np.isnan(values).all()
    }
    metrics = {
        "fingerprint": f"of {folder.name}", "split": "test", "pairs": count, "persons": len(set(PERSONS[:count])),
        "interval_method": "95 %", "scores": dict.fromkeys(scores) | means,
        "intervals": ends,
        "baselines": {
            "source": dict.fromkeys(scores, float(source[:count].mean())), "mean": dict.fromkeys(scores, mean)
        },
        "baseline_intervals": {"source": ends, "mean": ends}, "stand_ins": plan.pop("stand_ins", []),
    }  # fmt: skip
    (folder / "scores/metrics.json").write_text(json.dumps(metrics))
    content = {
        "layout": LAYOUT,
        "system": {"name": plan.pop("system", "vdg"), "variant": "full"},
        "stages": [{"name": "coarse"}, {"name": "fine"}],
        "settings": {"coarse.steps": 1200, "fine.steps": 34, "dataset": "synthetic", **plan},
    }
    (folder / "plan.json").write_text(json.dumps(content))
    return folder


def values(*gains: float) -> dict[str, np.ndarray]:
    """mask-L1 of 0.2 plus a gain of each person in turn."""
    return {"mask_l1": np.array([0.2 + gains[PERSONS.index(person) // 4 % len(gains)] for person in PERSONS])}


def test_a_constant_difference_is_certain(tmp_path):
    found = compare_runs([a_run(tmp_path / "a", values(0.0)), a_run(tmp_path / "b", values(-0.05))])
    apart = found.differences[1, "mask_l1"]
    assert apart.mean == pytest.approx(-0.05)
    assert apart.interval == pytest.approx([-0.05, -0.05])
    assert apart.outcome == "better"  # lower is
    assert (0, "mask_l1") not in found.differences


def test_the_difference_is_paired(tmp_path):
    """Scores that scatter from 0.1 to 0.9 over the persons differ by 0.001 on each pair: that is seen."""
    base = np.linspace(0.1, 0.9, len(PERSONS))
    runs = [a_run(tmp_path / "a", {"ssim": base}), a_run(tmp_path / "b", {"ssim": base + 0.001})]
    apart = compare_runs(runs).differences[1, "ssim"]
    assert apart.outcome == "better"
    assert apart.interval == pytest.approx([0.001, 0.001])


def test_the_interval_is_the_bootstrap_over_persons_worked_out_slowly(tmp_path):
    gains = (0.03, -0.01, 0.02, 0.0, 0.05, -0.02)
    runs = [a_run(tmp_path / "a", values(0.0)), a_run(tmp_path / "b", values(*gains))]
    apart = compare_runs(runs).differences[1, "mask_l1"]
    counts = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=1000)
    means = [sum(times * gain for times, gain in zip(row, gains, strict=True)) / 6 for row in counts]
    assert apart.mean == pytest.approx(sum(gains) / 6)
    assert apart.interval == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist())
    assert apart.outcome == "same"


@pytest.mark.parametrize(
    ("metric", "gain", "outcome"), [("mask_l1", 0.1, "worse"), ("ssim", 0.1, "better"), ("ssim", -0.1, "worse")]
)
def test_the_outcome_follows_the_metrics_direction(tmp_path, metric, gain, outcome):
    base = values(0.0)["mask_l1"]
    runs = [a_run(tmp_path / "a", {metric: base}), a_run(tmp_path / "b", {metric: base + gain})]
    assert compare_runs(runs).differences[1, metric].outcome == outcome


def test_pairs_that_one_run_has_no_score_of_are_left_out(tmp_path):
    other = values(-0.05)["mask_l1"]
    other[3:] = np.nan
    runs = [a_run(tmp_path / "a", values(0.0)), a_run(tmp_path / "b", {"mask_l1": other})]
    assert compare_runs(runs).differences[1, "mask_l1"].mean == pytest.approx(-0.05)
    nothing = a_run(tmp_path / "c", {"mask_l1": np.full(len(PERSONS), np.nan)})
    assert compare_runs([runs[0], nothing]).differences == {}


def test_only_shared_scores_are_compared_and_all_are_shown(tmp_path):
    pose = {"pose_error": values(0.3)["mask_l1"]}
    runs = [a_run(tmp_path / "a", values(0.0)), a_run(tmp_path / "b", values(0.1) | pose)]
    found = compare_runs(runs)
    assert found.metrics == ["mask_l1", "pose_error"]
    assert found.differences.keys() == {(1, "mask_l1")}
    assert found.baselines["source"][0].keys() == {"mask_l1", "pose_error"}


def test_what_a_run_is(tmp_path):
    run = compare_runs([a_run(tmp_path / "a", values(0.0), system="pg2"), a_run(tmp_path / "b", values(0.1))]).runs[0]
    assert (run.system, run.variant, run.steps) == ("pg2", "full", {"coarse": 1200, "fine": 34})
    assert run.names[1] == ("a_1", "a_2")


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [a_run(tmp_path / "one/run", values(0.0)), a_run(tmp_path / "two/run", values(0.1))]
    assert list(compare_runs(folders).labels) == [str(folder) for folder in folders]
    third = a_run(tmp_path / "other", values(0.1))
    assert list(compare_runs([folders[0], third]).labels) == ["run", "other"]


def test_fewer_than_two_runs_and_what_is_no_scored_run_are_told(tmp_path):
    scored = a_run(tmp_path / "a", values(0.0))
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"1 run\(s\) were given to compare; give at least two"):
        compare_runs([scored])
    with pytest.raises(ValueError, match="no such run folder"):
        compare_runs([scored, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"bare has no scores\. Make them first: posegen evaluate --run .*bare"):
        compare_runs([scored, tmp_path / "bare"])


def test_other_pairs_are_told_with_the_command_that_helps(tmp_path):
    whole = a_run(tmp_path / "a", values(0.0))
    part = a_run(tmp_path / "b", {"mask_l1": np.full(8, 0.2)})
    for given in ([whole, part], [part, whole]):
        with pytest.raises(ValueError, match=r"8 in common.*posegen evaluate --run \S*a --pairs 8 --update"):
            compare_runs(given)


def test_other_people_are_told(tmp_path):
    first, other = (a_run(tmp_path / name, values(0.0)) for name in "ab")
    table = parquet.read_table(other / "scores/pairs.parquet")
    names = pa.array([f"other {name}" for name in table["target"].to_pylist()])
    place = table.column_names.index("target")
    parquet.write_table(table.set_column(place, "target", names), other / "scores/pairs.parquet")
    with pytest.raises(ValueError, match=r"other data than[\s\S]*0 of 24 pairs are the same"):
        compare_runs([first, other])


def test_other_images_under_the_same_names_are_told(tmp_path):
    first = a_run(tmp_path / "a", values(0.0), **{"data.seed": 0, "shards.size": [64, 32]})
    other = a_run(tmp_path / "b", values(0.0), source=SOURCE + 0.01, **{"data.seed": 1, "shards.size": [64, 32]})
    with pytest.raises(ValueError, match=r"other data than[\s\S]*data.seed: 0 there, 1 here[\s\S]*--dataset") as told:
        compare_runs([first, other])
    assert "shards.size" not in str(told.value)


def test_scores_of_another_machine_are_the_same_data(tmp_path):
    first = a_run(tmp_path / "a", values(0.0))
    assert compare_runs([first, a_run(tmp_path / "b", values(0.0), source=SOURCE * (1 + 1e-9))]).notes == []


def test_runs_without_a_score_in_common_are_told(tmp_path):
    first = a_run(tmp_path / "a", values(0.0))
    second = a_run(tmp_path / "b", {"pose_error": values(0.0)["mask_l1"]})
    with pytest.raises(ValueError, match="no score in common: mask_l1 there, pose_error here"):
        compare_runs([first, second])


def test_other_training_images_and_stand_ins_are_noted(tmp_path):
    first = a_run(tmp_path / "a", values(0.0), stand_ins=["random features"])
    found = compare_runs([first, a_run(tmp_path / "b", values(0.0), mean=0.41, stand_ins=["random features"])])
    assert len(found.notes) == 2
    assert "trained on other images" in found.notes[0]
    assert found.notes[1] == "random features"
    assert found.baselines["mean"][0]["mask_l1"] == 0.4


def test_settings_that_differ(tmp_path):
    settings = ({"coarse.lr": 1.0, "seed": 3}, {"coarse.lr": 1.0, "seed": 4, "fine.alpha": 0.5})
    runs = compare_runs([a_run(tmp_path / str(n), values(0.0), **each) for n, each in enumerate(settings)]).runs
    assert differing_settings(runs) == {"seed": [3, 4], "fine.alpha": ["unset", 0.5]}
    assert differing_settings(runs, heads=["fine"]) == {"fine.alpha": ["unset", 0.5]}


@pytest.fixture
def three(tmp_path):
    """The second one is better, the third one of an unknown score and no different otherwise."""
    noise = np.tile([0.01, -0.01], len(PERSONS) // 2)
    third = {"mask_l1": values(0.0)["mask_l1"] + noise, "pose_error": values(4.0)["mask_l1"]}
    folders = [a_run(tmp_path / "first", values(0.0)), a_run(tmp_path / "second", values(-0.1), system="pg2")]
    return compare_runs([*folders, a_run(tmp_path / "third", third, **{"fine.alpha": 0.25})])


def test_the_terminals_tables(three):
    of_images, of_joints = tables(three)
    printed = io.StringIO()
    Console(width=100, file=printed).print(of_images)
    text = printed.getvalue()
    assert [word for word in text.split() if word in ("better", "worse", "same")] == [
        "same",
        "better",
        "same",
    ]  # the title
    assert "1,200 + 34 steps" in text
    assert [word in text for word in ("first", "second", "third", "pg2 full", "source", "mean")] == [True] * 6
    assert of_joints.row_count == 5
    assert of_images.row_count == 5


def test_the_csv_has_everything(three, tmp_path):
    write_comparison(three, tmp_path / "out/compare.csv")
    with (tmp_path / "out/compare.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["first", "second", "third", "baseline source", "baseline mean"]
    second, third = rows["second"], rows["third"]
    assert (second["system"], second["steps"], second["mask_l1_outcome"]) == ("pg2", "1234", "better")
    assert float(second["mask_l1"]) == pytest.approx(0.1)
    assert float(second["mask_l1_minus_first_high"]) == pytest.approx(-0.1)
    assert (third["mask_l1_outcome"], third["pose_error_outcome"], second["pose_error"]) == ("same", "", "")
    assert float(third["pose_error_low"]) == 0.1
    assert rows["first"]["mask_l1_minus_first"] == rows["baseline mean"]["mask_l1_outcome"] == ""
    assert float(rows["baseline mean"]["mask_l1"]) == 0.4


def test_the_page_has_everything_and_fetches_nothing(three, tmp_path):
    write_comparison(three, tmp_path / "compare.html")
    page = " ".join((tmp_path / "compare.html").read_text().split())
    for said in (
        "first",
        "pg2 full",
        "1,200 + 34 steps",
        "better −0.1000",
        "same",
        "fine.alpha",
        "no images are shown",
    ):
        assert said in page, said
    assert "http" not in page
    assert "<script" not in page
    assert page.count('class="best"') == 1 + 1  # second in mask-L1; in the pose error a baseline


def test_another_kind_of_file_is_told(three, tmp_path):
    for path in (tmp_path / "compare.pdf", tmp_path / "compare"):
        with pytest.raises(ValueError, match=r"expected a file that ends with \.html or \.csv"):
            write_comparison(three, path)
        assert not path.exists()
    check_output(None)


def test_samples_are_the_fixed_draw_with_the_results_of_reports(block_shards, tmp_path):
    runs = [a_run(tmp_path / name, values(0.0)) for name in ("first", "second", "third")]
    (runs[1] / "shards").symlink_to(block_shards)
    rows = chosen_rows({"pair": np.arange(24), "mask_l1": values(0.0)["mask_l1"], "person": np.array(PERSONS)})["fixed"]
    for level, run in ((60, runs[0]), (120, runs[2])):
        cases = [[np.full((64, 32, 3), value, np.uint8) for value in (1, 2, level + n, 4, 5)] for n in range(len(rows))]
        (run / "report").mkdir()
        cv2.imwrite(str(run / "report/sample_sheet.png"), sheet(cases, 128))
        made_of = f"of {run.name}" if run == runs[0] else "other scores"
        (run / "report/fingerprint.json").write_text(json.dumps({"fingerprint": digest(made_of, "report")}))
    samples, notes = fixed_samples(compare_runs(runs))
    assert [panel.label for panel in samples[0]] == ["source", "target pose", "first", "target"]
    assert [row[2].image.ravel()[0] for row in samples] == [60 + n for n in range(len(rows))]
    shards = Shards(block_shards)
    targets = shards.split("test").pair_rows(np.array(rows))[1]
    np.testing.assert_array_equal([row[3].image for row in samples], shards.images("test", targets.tolist()))
    assert [note.partition(" are shown")[0] for note in notes] == ["no images of second", "no images of third"]
    assert "posegen report --run" in notes[0]


def test_runs_at_uris_are_compared_as_those_in_folders(s3_server, two_nodes, block_shards, tmp_path):
    """Another node, where nothing of them is, fetches their scores, and of the shards what the page shows."""
    places = ("s3://runs/compared/first", "s3://runs/compared/second")
    for place, gain in zip(places, (0.0, 0.1), strict=True):
        store = Store.of(place)
        a_run(store.folder, values(gain))
        (store.folder / "stages").mkdir()
        (store.folder / "stages/networks.safetensors").write_text("weights")
        if gain:
            shutil.copytree(block_shards, store.folder / "shards")
        store.publish("")
    two_nodes("second")
    found = compare_runs([*places, a_run(tmp_path / "here", values(0.2))])
    assert list(found.labels) == ["first", "second", "here"]
    assert found.differences[1, "mask_l1"].mean == pytest.approx(0.1)
    assert not (Store.of(places[0]).folder / "stages").exists()
    samples, notes = fixed_samples(found)
    assert [panel.label for panel in samples[0]] == ["source", "target pose", "target"]
    assert f"posegen report --run {places[0]}" in notes[0]
    with pytest.raises(ValueError, match="s3://runs/compared/nowhere has no scores"):
        compare_runs([places[0], "s3://runs/compared/nowhere"])
