"""MLflow: one run for the pipeline or sweep, nested runs for stages and trials. Written from the driver and the
controller only.

The store is an SQLite file in the run folder, by an absolute path (workers have other folders), unless
MLFLOW_TRACKING_URI names another. Run ids are kept in mlflow.json, so that a pipeline that goes on goes on in its runs.
A failure of tracking warns loudly and never ends a training.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

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
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, int(row["step"])) for row in rows for name, value in row.items() if name != "step"
        ]
        client = MlflowClient(self.uri)
        for start in range(0, len(metrics), 1000):  # MLflow's limit for one call
            client.log_batch(self.run, metrics=metrics[start : start + 1000])


def _make_database(database: Path) -> None:
    """Makes MLflow's database with all its tables, at once: one that was left with some of them it refuses for ever."""
    if database.exists():
        return
    hidden = temporary_beside(database)  # a folder, for SQLite writes a journal beside what it makes
    hidden.mkdir(parents=True)
    try:
        made = hidden / DATABASE
        MlflowClient(f"sqlite:///{made}").search_experiments()
        to_disk(made)
        os.replace(made, database)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def no_log(rows: Curve) -> None:
    """Where tracking could not be started."""


@dataclass
class Tracking:
    """The pipeline's runs in MLflow. Every method warns instead of raising."""

    folder: Path  # the run folder
    warn: Callable[[str], None]
    uri: str = ""
    runs: dict[str, str] = field(default_factory=dict)  # "pipeline" and the stages' names -> MLflow run ids

    def start(self, parameters: Mapping[str, object], *, anew: bool = False) -> None:
        """Makes the store, the experiment and the pipeline's run where they are not there yet.

        `anew`: something is redone with other settings, so the pipeline gets another run; the old one stays.
        """
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # what fails there is raised, and told in one line
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.folder.resolve() / DATABASE}"
        self._guarded(lambda: self._start(parameters, anew))

    def _start(self, parameters: Mapping[str, object], anew: bool) -> None:
        own = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            own = (self.folder.resolve() / "mlartifacts").as_uri()
            _make_database(self.folder.resolve() / DATABASE)
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        identifier = (
            experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, artifact_location=own)
        )
        known = self.folder / "mlflow.json"
        saved = read_json(known) or {}
        self.runs = saved.get("runs", {}) if saved.get("uri") == self.uri and not anew else {}
        self._run("pipeline", self.folder.name, identifier, parameters)

    def stage(self, name: str, parameters: Mapping[str, object], *, anew: bool) -> Callable[[Curve], None]:
        """The nested run of a stage, another one where it starts `anew`; gives what its curve is logged with."""
        if anew:
            self.runs.pop(name, None)
        self.nested(name, parameters)
        return StageLog(self.uri, self.runs[name]) if name in self.runs else no_log

    def nested(self, name: str, parameters: Mapping[str, object]) -> None:
        """A run within the pipeline's, where that could be made: a new one where there is none of this name yet."""
        if "pipeline" in self.runs:
            self._guarded(lambda: self._nested(name, parameters))

    def _nested(self, name: str, parameters: Mapping[str, object]) -> None:
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
        """Ends a run: FINISHED, or FAILED."""
        if name in self.runs:
            self._guarded(lambda: MlflowClient(self.uri).set_terminated(self.runs[name], status))

    def scores(self, scores: Mapping[str, float], artifacts: list[Path]) -> None:
        """Scores, the sample sheet and the report, on the pipeline's run."""
        self.rows("pipeline", [{"step": 0, **scores}])
        self.tag("pipeline", "posegen.folder", str(self.folder.resolve()))
        self.files("pipeline", artifacts)

    def rows(self, name: str, rows: Curve) -> None:
        """Values by step on a run, {"step": n, "<metric>": value}; those that it has already are not written again."""
        if name in self.runs:
            self._guarded(lambda: StageLog(self.uri, self.runs[name])(self._new(self.runs[name], rows)))

    def _new(self, run: str, rows: Curve) -> Curve:
        """The rows whose first metric has no value of their step yet."""
        keys = {next(key for key in row if key != "step") for row in rows if len(row) > 1}
        client = MlflowClient(self.uri)
        known = {(key, metric.step) for key in keys for metric in client.get_metric_history(run, key)}
        return [row for row in rows if not any((key, int(row["step"])) in known for key in row)]

    def tag(self, name: str, key: str, value: str) -> None:
        if name in self.runs:
            self._guarded(lambda: MlflowClient(self.uri).set_tag(self.runs[name], key, value))

    def tagged(self, name: str, key: str) -> str | None:
        """A tag of a run; None where it has none or cannot be asked."""
        found: list[str] = []
        if name in self.runs:
            self._guarded(lambda: found.extend(self._tags(name).get(key, "").splitlines()))
        return found[0] if found else None

    def _tags(self, name: str) -> dict[str, str]:
        return MlflowClient(self.uri).get_run(self.runs[name]).data.tags

    def files(self, name: str, paths: Sequence[Path], folder: str = "report") -> None:
        """Copies of files with a run."""
        if name in self.runs:
            self._guarded(lambda: self._files(self.runs[name], paths, folder))

    def _files(self, run: str, paths: Sequence[Path], folder: str) -> None:
        for path in paths:
            MlflowClient(self.uri).log_artifact(run, str(path), folder)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self.warn(f"MLflow tracking at {self.uri} failed; the run goes on without it: {error!r}")
