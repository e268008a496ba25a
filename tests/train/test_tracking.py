"""MLflow, read back through its own client; its failures warn and end nothing."""

import json
import pickle
from pathlib import Path

import pytest
from mlflow import MlflowClient

from posegen.train.tracking import Tracking


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


def test_a_store_that_cannot_be_opened_warns_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    warnings: list[str] = []
    tracking = Tracking(folder, warnings.append)
    tracking.start({"seed": 0})
    tracking.stage("coarse", {}, anew=True)([{"step": 1, "generator/l1": 1.0}])
    tracking.finish("pipeline")
    assert warnings
    assert all("goes on without it" in warning for warning in warnings)
