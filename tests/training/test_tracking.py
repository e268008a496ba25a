"""MLflow, read back through its own client; its failures warn and end nothing."""

import json
import pickle
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from posegen.training.tracking import Tracking


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_pipeline_that_goes_on_goes_on_in_its_runs(folder: Path):
    warnings: list[str] = []
    first = Tracking(folder, warnings.append)
    first.start({"seed": 0})
    pickle.loads(pickle.dumps(first.stage("coarse", {"coarse.lr": 0.1}, anew=True)))([{"step": 5, "generator/l1": 0.5}])
    first.finish("coarse", "FAILED")
    second = Tracking(folder, warnings.append)
    second.start({"seed": 0})
    log = second.stage("coarse", {"coarse.lr": 0.1}, anew=False)
    log([{"step": 10, "generator/l1": 0.25}])
    second.scores({"mask_l1": 0.125}, [folder / "mlflow.json"])
    second.finish("coarse")
    second.finish("pipeline")
    assert second.runs == first.runs
    assert warnings == []
    client = MlflowClient(second.uri)
    stage, pipeline = client.get_run(second.runs["coarse"]), client.get_run(second.runs["pipeline"])
    assert [(m.step, m.value) for m in client.get_metric_history(stage.info.run_id, "generator/l1")] == [
        (5, 0.5),
        (10, 0.25),
    ]
    assert stage.data.params == {"coarse.lr": "0.1"}
    assert (stage.info.status, pipeline.info.status) == ("FINISHED", "FINISHED")
    assert pipeline.data.metrics == {"mask_l1": 0.125}
    assert [f.path for f in client.list_artifacts(pipeline.info.run_id, "report")] == ["report/mlflow.json"]
    redone = Tracking(folder, warnings.append)
    redone.start({"seed": 1}, anew=True)
    redone.stage("coarse", {"coarse.lr": 0.2}, anew=True)
    assert not set(redone.runs.values()) & set(second.runs.values())
    assert json.loads((folder / "mlflow.json").read_text())["runs"] == redone.runs


def test_the_database_is_seen_with_all_its_tables_or_not_at_all(folder: Path):
    """One that a killed process left half-made would be refused for ever."""
    code = "import sys; from pathlib import Path; from posegen.training.tracking import Tracking; "
    code += "Tracking(Path(sys.argv[1]), print).start({})"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    making, seen = set(), set()
    while process.poll() is None:
        making |= {tables(hidden) for hidden in folder.glob(".mlflow.db.*.tmp/mlflow.db")}
        seen |= {tables(database) for database in folder.glob("mlflow.db")}
        time.sleep(0.005)
    assert len(making - {None}) > 1, "it was made in steps"
    assert seen - {None} == {tables(folder / "mlflow.db")}


def tables(database: Path) -> int | None:
    """How many tables an SQLite file holds by now; None where it cannot be read, being written."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            return opened.execute("select count(*) from sqlite_master where type = 'table'").fetchone()[0]
    except sqlite3.Error:
        return None


def test_a_store_that_cannot_be_opened_warns_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    warnings: list[str] = []
    tracking = Tracking(folder, warnings.append)
    tracking.start({"seed": 0})
    tracking.stage("coarse", {}, anew=True)([{"step": 1, "generator/l1": 1.0}])
    tracking.finish("pipeline")
    assert warnings
    assert all("continues without it" in warning for warning in warnings)


def test_trials_are_nested_runs_with_rows_tags_and_files(folder: Path):
    warnings: list[str] = []
    tracking = Tracking(folder, warnings.append)
    tracking.start({"budget": 240})
    tracking.nested("trial-0001", {"refinement.alpha": 0.25, "seed": 0})
    tracking.rows("trial-0001", [{"step": 60, "validation/ssim": 0.5}, {"step": 120, "validation/ssim": 0.625}])
    tracking.tag("trial-0001", "posegen.best", "true")
    for name in ("samples.png", "page.html"):
        (folder / name).write_bytes(name.encode())
    tracking.files("trial-0001", [folder / "samples.png"], "samples")
    tracking.files("trial-0001", [folder / "page.html"])
    tracking.finish("trial-0001", "KILLED")
    assert warnings == []
    client = MlflowClient(tracking.uri)
    trial = client.get_run(tracking.runs["trial-0001"])
    assert trial.data.tags["mlflow.parentRunId"] == tracking.runs["pipeline"]
    assert (trial.info.run_name, trial.info.status) == ("trial-0001", "KILLED")
    assert trial.data.params == {"refinement.alpha": "0.25", "seed": "0"}
    history = client.get_metric_history(trial.info.run_id, "validation/ssim")
    assert [(metric.step, metric.value) for metric in history] == [(60, 0.5), (120, 0.625)]
    assert trial.data.tags["posegen.best"] == "true"
    for path, name in (("samples", "samples.png"), ("report", "page.html")):
        assert [f.path for f in client.list_artifacts(trial.info.run_id, path)] == [f"{path}/{name}"]
        downloaded = client.download_artifacts(trial.info.run_id, f"{path}/{name}", str(folder))
        assert Path(downloaded).read_bytes() == name.encode()
    assert client.get_run(tracking.runs["pipeline"]).data.metrics == {}, "a trial's scores are its own"


def test_a_trial_that_goes_on_goes_on_in_its_run(folder: Path):
    warnings: list[str] = []
    for step in (60, 120):  # the second time in another process, as far as tracking can tell
        tracking = Tracking(folder, warnings.append)
        tracking.start({})
        tracking.nested("trial-0001", {"refinement.alpha": 0.25})
        tracking.rows("trial-0001", [{"step": step, "validation/ssim": step / 1000}])
        tracking.finish("trial-0001")
    client = MlflowClient(tracking.uri)
    (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == "posegen")
    assert {run.info.run_id for run in client.search_runs([experiment])} == set(tracking.runs.values())
    history = client.get_metric_history(tracking.runs["trial-0001"], "validation/ssim")
    assert [metric.step for metric in history] == [60, 120]
    assert warnings == []


def test_a_run_that_could_not_be_started_takes_no_rows_tags_and_files(folder: Path):
    warnings: list[str] = []
    tracking = Tracking(folder, warnings.append)
    tracking.start({})
    tracking.rows("trial-0009", [{"step": 1, "validation/ssim": 0.5}])
    tracking.tag("trial-0009", "posegen.best", "true")
    tracking.files("trial-0009", [folder / "mlflow.json"])
    assert set(tracking.runs) == {"pipeline"}
    assert warnings == []
    tracking.files("pipeline", [folder / "nowhere.png"])
    assert ["continues without it" in warning for warning in warnings] == [True]


@pytest.mark.long
def test_what_mlflow_cannot_write_is_told_in_one_line(folder: Path, capfd: pytest.CaptureFixture[str]):
    warnings: list[str] = []
    tracking = Tracking(folder, warnings.append)
    tracking.start({"seed": 0})
    with closing(sqlite3.connect(folder / "mlflow.db")) as other:
        other.execute("begin exclusive")
        tracking.tag("pipeline", "posegen.folder", "here")
    assert len(warnings) == 1
    assert "locked" in warnings[0]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a?b", "a%41b", "a #b", "ä b"])
def test_the_database_lies_in_the_run_whatever_its_name(tmp_path, name, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    warnings: list[str] = []
    tracking = Tracking(folder, warnings.append)
    tracking.start({"seed": 1})
    tracking.rows("pipeline", [{"step": 1, "loss": 0.5}])
    assert warnings == []
    assert (folder / "mlflow.db").is_file()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [name]
    assert MlflowClient(tracking.uri).get_metric_history(tracking.runs["pipeline"], "loss")[0].value == 0.5
