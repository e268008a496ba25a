"""The report's page: nothing fetched, everything escaped, every case and number in its place."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from posegen import catalog
from posegen.data.loading.dataset import Shards
from posegen.evaluation.metrics import BASELINES, METRICS
from posegen.evaluation.scoring import score_chunk, summary, training_means
from posegen.inference import Trained
from posegen.report.page import (
    against_best_baseline,
    best_baseline,
    flattened,
    headline,
    score_row,
    win_percentage,
    write_report,
)
from posegen.report.panels import EXTREME, FIXED, chosen_rows, make_cases, ranked

VOID = {"meta", "img", "input", "line", "polyline", "br", "link"}
HOSTILE = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def trained() -> Trained:
    settings = {"coarse.width": 4, "refinement.width": 4, "refinement.discriminator_width": 4}
    system = catalog.override(catalog.system("vdg", "synthetic"), settings)
    torch.manual_seed(0)
    networks = {
        stage.name: {name: net.eval() for name, net in stage.networks(system.canvas).items()} for stage in system.stages
    }
    return Trained(system, networks, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(trained, block_shards, tmp_path_factory) -> Path:
    """Scores and curves as evaluation and training leave them, and the report of them."""
    run = tmp_path_factory.mktemp("run")
    shards = Shards(block_shards)
    table = score_chunk(trained, shards, range(shards.pair_count("test")), training_means(trained.system, shards))
    persons = [name[:4] for name in table["target"]]
    (run / "scores").mkdir()
    parquet.write_table(pa.table({**table, "person": persons}), run / "scores/pairs.parquet")
    metrics = {"fingerprint": "of scores", "pairs": 24, "pairs_available": 24, **summary(table, persons)}
    metrics["stand_ins"] = [f"features of {HOSTILE} are random"]
    (run / "scores/metrics.json").write_text(json.dumps(metrics))
    checkpoint = run / "stages/coarse/checkpoint_00000030"
    checkpoint.mkdir(parents=True)
    (checkpoint / "stage.json").write_text("{}")
    (checkpoint / "curve.json").write_text(json.dumps([{"step": s, "generator/l1": 1 / s} for s in range(1, 30)]))
    plan = {
        "system": "vdg", "variant": "full", "dataset": HOSTILE, "seed": 3, "size": [64, 32],
        "stages": [{"name": "coarse", "settings": {"betas": [0.5, 0.999]}, "parameters": {"generator": 12345}}],
        "data": {"people": 6, "deep": {"inner": None}},
    }  # fmt: skip
    write_report(
        run / "report", trained=trained, data=Shards(block_shards), scores=run / "scores", stages=run / "stages",
        plan=plan, reproduce=["python flows/full_pipeline.py --seed 3"], fingerprint="of report",
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report/index.html").read_text(encoding="utf-8")


class Strict(HTMLParser):
    """Fails on tags that are not closed in order; collects attributes and text."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def parsed(page) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    return parser


def test_page_is_well_formed(parsed):
    assert parsed.open == []
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched(page, parsed):
    references = [value for _, name, value in parsed.attributes if name in {"src", "href", "srcset", "action", "data"}]
    assert references
    assert all(value.startswith(("data:image/", "#")) for value in references)
    anchors = {value[1:] for value in references if value.startswith("#")}
    assert anchors <= {value for _, name, value in parsed.attributes if name == "id"}
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe", re.sub(r"base64,[^\"]*", "", page))


def test_everything_is_escaped(page, parsed):
    assert html.escape(HOSTILE, quote=False)[:10] in page
    assert any(HOSTILE in words for words in parsed.words)


def test_images_are_whole(parsed, trained):
    images = [value for tag, name, value in parsed.attributes if (tag, name) == ("img", "src")]
    panels = 6  # source, pose, coarse, result, target, difference
    assert len(images) == panels * (2 * EXTREME + FIXED)


def test_page_tells_the_run(parsed):
    text = " ".join(" ".join(parsed.words).split())
    for said in (
        "VDG",
        "24 of 24 test pairs",
        "12,345",
        "0.5, 0.999",
        "deep.inner not set",
        "generator/l1",
        "of report",
        f"features of {HOSTILE} are random.",
    ):
        assert said in text, said
    assert "python flows/full_pipeline.py --seed 3" in text
    assert "No curve was kept for this stage." in text
    assert all(metric.title in text for metric in METRICS.values())


def test_files_beside_the_page(folder):
    report = folder / "report"
    assert sorted(path.name for path in report.iterdir()) == ["fingerprint.json", "index.html", "sample_sheet.png"]
    assert json.loads((report / "fingerprint.json").read_text()) == {"fingerprint": "of report"}
    sheet = cv2.imread(str(report / "sample_sheet.png"))
    assert sheet.shape == (FIXED * (128 + 4) + 4, 6 * (64 + 4) + 4, 3)


def test_unscored_run_is_told(trained, block_shards, tmp_path):
    with pytest.raises(ValueError, match="not scored"):
        write_report(
            tmp_path / "report", trained=trained, data=Shards(block_shards), scores=tmp_path, stages=tmp_path, plan={},
            reproduce=[], fingerprint="",
        )  # fmt: skip
    assert not (tmp_path / "report").exists()


def scores_table(mask_l1: list[float], persons: str) -> dict[str, np.ndarray]:
    return {"pair": np.arange(len(mask_l1)), "mask_l1": np.array(mask_l1), "person": np.array(list(persons))}


def test_ranking_is_best_first_without_what_has_no_score():
    assert ranked(scores_table([0.3, np.nan, 0.1, 0.3, 0.2], "abcde")) == [2, 4, 0, 3]


def test_best_and_worst_are_of_different_persons():
    values = [i / 100 for i in range(40)]
    rows = chosen_rows(scores_table(values, "".join(letter * 4 for letter in "abcdefghij")))
    assert rows["best"] == [0, 4, 8, 12, 16, 20, 24, 28]
    assert rows["worst"] == [39, 35, 31, 27, 23, 19, 15, 11]
    assert len(set(rows["fixed"])) == FIXED
    assert rows["fixed"] == chosen_rows(scores_table(values[::-1], "z" * 40))["fixed"]


def test_few_persons_fill_up_in_order():
    rows = chosen_rows(scores_table([i / 100 for i in range(20)], "ab" * 10))
    assert rows["best"] == list(range(8))
    assert rows["worst"] == list(range(19, 11, -1))


def test_few_pairs_are_all_shown():
    assert chosen_rows(scores_table([0.2, 0.1], "ab")) == {"best": [1, 0], "worst": [0, 1], "fixed": [0, 1]}


def test_cases_keep_their_order_and_show_the_pairs(folder, trained, block_shards):
    read = parquet.read_table(folder / "scores/pairs.parquet")
    table = {name: read[name].to_numpy() for name in read.column_names}
    shards = Shards(block_shards)
    cases = make_cases(trained, shards, table, [17, 2, 9], ["mask_l1"])
    assert [case.pair for case in cases] == [17, 2, 9]
    assert [(case.source, case.target) for case in cases] == shards.pair_names("test", [17, 2, 9])
    assert [case.scores["mask_l1"] for case in cases] == table["mask_l1"][[17, 2, 9]].tolist()
    labels = ["source", "target pose", "coarse image", "result", "target", "difference"]
    assert all([panel.label for panel in case.panels] == labels for case in cases)
    shown = {panel.label: panel.image for panel in cases[0].panels}
    assert np.abs(shown["result"].astype(int) - shown["target"]).mean() > 0
    assert shown["target pose"].shape == (256, 128, 3)


def made_metrics(mine: float | None, source: float | None, mean: float | None, similarity: float | None) -> dict:
    baselines = dict(zip(BASELINES, (source, mean, similarity), strict=True))
    interval = [0.0, 1.0]
    return {
        "scores": dict.fromkeys(METRICS, mine),
        "intervals": dict.fromkeys(METRICS, interval),
        "baselines": {name: dict.fromkeys(METRICS, value) for name, value in baselines.items()},
        "baseline_intervals": {name: dict.fromkeys(METRICS, interval) for name in baselines},
    }


def test_best_baseline_follows_the_direction():
    metrics = made_metrics(0.1, 0.2, 0.4, 0.3)
    assert best_baseline("mask_l1", metrics) == ("source", 0.2)
    assert best_baseline("ssim", metrics) == ("mean", 0.4)
    assert best_baseline("ssim", made_metrics(0.1, None, None, None)) is None


@pytest.mark.parametrize(
    ("metric", "mine", "expected"),
    [
        ("mask_l1", 0.1, ("0.50 ×", True)),
        ("mask_l1", 0.3, ("1.50 ×", False)),
        ("ssim", 0.5, ("1.25 ×", True)),
        ("ssim", -0.1, ("-0.50", False)),
        ("psnr", 20.4, ("+20.00 dB", True)),
        ("psnr", None, None),
    ],
)
def test_comparison(metric, mine, expected):
    assert against_best_baseline(metric, made_metrics(mine, 0.2, 0.4, 0.3), mine) == expected


def test_score_row_marks_the_best():
    row = score_row("mask_l1", made_metrics(0.1, 0.2, None, 0.3))
    assert [cell["best"] for cell in row["cells"]] == [True, False, False, False]
    assert [cell["text"] for cell in row["cells"]] == ["0.100", "0.200", "–", "0.300"]
    row = score_row("ssim", made_metrics(0.1, 0.2, None, 0.3))
    assert [cell["best"] for cell in row["cells"]] == [False, False, False, True]


def test_headline_bars_are_lengths():
    bars = headline("ssim", made_metrics(0.2, 0.4, -0.1, None))["bars"]
    assert [bar["length"] for bar in bars] == pytest.approx([50, 100, 0, 0])


def test_wins_count_pairs_below_every_baseline():
    table = {
        "mask_l1": np.array([0.1, 0.2, 0.1, np.nan]),
        **{f"{name}.mask_l1": np.array([0.15, 0.15, 0.3, 0.3]) for name in BASELINES},
    }
    assert win_percentage(table) == 67
    table["mask_l1"][:] = np.nan
    assert win_percentage(table) is None


def test_flattened_writes_dotted_paths():
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": [{"g": 1}, {"g": 2}], "h": {}}
    assert flattened(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None, "f.0.g": 1, "f.1.g": 2, "h": {}}
