"""MLflow: one run for the pipeline or sweep, nested runs for stages and trials. Written from the driver and the
controller only.

The store is an SQLite file in the run folder, by an absolute path (workers have other folders), unless
MLFLOW_TRACKING_URI names another. Run ids are kept in mlflow.json, so that a resumed pipeline continues its runs. A
failure of tracking is a warning and never ends a training.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from sqlalchemy import URL

from posegen.storage.files import read_json, temporary_beside, to_disk, write_json
from posegen.training.checkpoints import Curve

EXPERIMENT = "posegen"
DATABASE = "mlflow.db"


@dataclass(frozen=True)
class StageLog:
    """Writes a stage's curve. Pickles to the controller."""

    uri: str
    run: str

    def __call__(self, rows: Curve) -> None:
        """Log rows of a curve as metrics."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, int(row["step"])) for row in rows for name, value in row.items() if name != "step"
        ]
        client = MlflowClient(self.uri)
        for start in range(0, len(metrics), 1000):  # MLflow's limit for one call
            client.log_batch(self.run, metrics=metrics[start : start + 1000])


def no_log(rows: Curve) -> None:
    """Ignore the rows: tracking could not be started."""


@dataclass
class Tracking:
    """The pipeline's runs in MLflow. Every method warns instead of raising."""

    folder: Path  # the run folder
    warn: Callable[[str], None]
    uri: str = ""
    runs: dict[str, str] = field(default_factory=dict)  # "pipeline" and the stages' names -> MLflow run ids

    def start(self, parameters: Mapping[str, object], *, anew: bool = False) -> None:
        """Create the store, the experiment and the pipeline's run, or continue them.

        `anew` creates another run of the pipeline, since something is redone with other settings; the old one stays.
        """
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # failures are raised, and become one warning
        folder, given = self.folder.resolve(), os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or database_uri(folder / DATABASE)
        with self._guarded():
            if not given:
                _make_database(folder / DATABASE)
            client = MlflowClient(self.uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            identifier = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(
                    EXPERIMENT, artifact_location=None if given else (folder / "mlartifacts").as_uri()
                )
            )
            saved = read_json(self.folder / "mlflow.json") or {}
            self.runs = saved.get("runs", {}) if saved.get("uri") == self.uri and not anew else {}
            self._run("pipeline", self.folder.name, identifier, parameters)

    def stage(self, name: str, parameters: Mapping[str, object], *, anew: bool) -> Callable[[Curve], None]:
        """Create or continue the nested run of a stage, another one if it starts `anew`; return its curve's logger."""
        if anew:
            self.runs.pop(name, None)
        self.nested(name, parameters)
        return StageLog(self.uri, self.runs[name]) if name in self.runs else no_log

    def nested(self, name: str, parameters: Mapping[str, object]) -> None:
        """Create a run within the pipeline's, or continue the one of this name."""
        if "pipeline" in self.runs:
            with self._guarded():
                parent = MlflowClient(self.uri).get_run(self.runs["pipeline"])
                self._run(name, name, parent.info.experiment_id, parameters, parent.info.run_id)

    def _run(
        self, key: str, name: str, experiment: str, parameters: Mapping[str, object], parent: str | None = None
    ) -> None:
        client = MlflowClient(self.uri)
        if key not in self.runs:
            tags = {"mlflow.runName": name} | ({"mlflow.parentRunId": parent} if parent else {})
            self.runs[key] = client.create_run(experiment, tags=tags).info.run_id
            client.log_batch(self.runs[key], params=[Param(k, str(v)[:6000]) for k, v in parameters.items()])
            write_json(self.folder / "mlflow.json", {"uri": self.uri, "runs": self.runs}, patience=0.0)
        client.update_run(self.runs[key], status="RUNNING")

    def finish(self, name: str, status: str = "FINISHED") -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        if name in self.runs:
            with self._guarded():
                MlflowClient(self.uri).set_terminated(self.runs[name], status)

    def scores(self, scores: Mapping[str, float], artifacts: list[Path]) -> None:
        """Log scores, the sample sheet and the report on the pipeline's run."""
        self.rows("pipeline", [{"step": 0, **scores}])
        self.tag("pipeline", "posegen.folder", str(self.folder.resolve()))
        self.files("pipeline", artifacts)

    def rows(self, name: str, rows: Curve) -> None:
        """Log values by step on a run, {"step": n, "<metric>": value}, except rows that it has already."""
        if name not in self.runs:
            return
        with self._guarded():
            run, client = self.runs[name], MlflowClient(self.uri)
            keys = {next(key for key in row if key != "step") for row in rows if len(row) > 1}
            known = {(key, metric.step) for key in keys for metric in client.get_metric_history(run, key)}
            StageLog(self.uri, run)([row for row in rows if not any((key, int(row["step"])) in known for key in row)])

    def tag(self, name: str, key: str, value: str) -> None:
        """Set a tag of a run."""
        if name in self.runs:
            with self._guarded():
                MlflowClient(self.uri).set_tag(self.runs[name], key, value)

    def tagged(self, name: str, key: str) -> str | None:
        """Return a tag of a run; None if it has none or cannot be read."""
        if name in self.runs:
            with self._guarded():
                return MlflowClient(self.uri).get_run(self.runs[name]).data.tags.get(key) or None
        return None

    def files(self, name: str, paths: Sequence[Path], folder: str = "report") -> None:
        """Copy files to a run."""
        if name in self.runs:
            with self._guarded():
                for path in paths:
                    MlflowClient(self.uri).log_artifact(self.runs[name], str(path), folder)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.warn(f"MLflow tracking at {self.uri} failed; the run continues without it: {error!r}")


def database_uri(database: Path) -> str:
    """Return MLflow's URI of an SQLite file, whose path may have any characters.

    Where the path has to be quoted the driver is named: with "sqlite:///" MLflow makes a folder of the quoted name.
    """
    plain, quoted = (
        URL.create(driver, database=str(database)).render_as_string() for driver in ("sqlite", "sqlite+pysqlite")
    )
    return plain if plain == f"sqlite:///{database}" else quoted


def _make_database(database: Path) -> None:
    """Create MLflow's database with all its tables at once: MLflow refuses one that has only some of them."""
    if database.exists():
        return
    hidden = temporary_beside(database)  # a folder, since SQLite writes a journal beside the database
    hidden.mkdir(parents=True)
    try:
        made = hidden / DATABASE
        MlflowClient(database_uri(made)).search_experiments()
        to_disk(made)
        os.replace(made, database)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
