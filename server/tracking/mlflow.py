"""MLflow: a run of the experiment `tessera`, at MLFLOW_TRACKING_URI or in mlruns/ beside the run's folder."""

import os

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from tessera.common.config.loading import flat
from tessera.common.config.settings import Settings
from tessera.common.metrics.records import FILE, Record
from tessera.server.run_folder import RunFolder
from tessera.server.tracking.base import scalars

EXPERIMENT, TAG = "tessera", "tessera.run"
AT_ONCE = 100
"""Parameters that MLflow takes in one call."""


class MLflow:
    """Logs settings as parameters, figures as metrics by round, and the run's config and metrics as artefacts.

    A resumed run goes on with its MLflow run, which is found by the tag `tessera.run`.
    """

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        os.environ.setdefault(
            "MLFLOW_ALLOW_FILE_STORE", "true"
        )  # files are enough here; a database needs all of MLflow
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder.path.parent / "mlruns").absolute().as_uri()
        self._client, self._folder = MlflowClient(tracking_uri=uri), folder.path
        known = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{folder.run}'")
        if found:
            self._run = found[0].info.run_id
            self._client.set_terminated(self._run, "RUNNING")
            return
        self._run = self._client.create_run(experiment, run_name=settings.name, tags={TAG: folder.run}).info.run_id
        params = [Param(name, value) for name, value in flat(settings).items()]
        for start in range(0, len(params), AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + AT_ONCE])

    def line(self, line: Record) -> None:
        """Log the scalars of a line at its round; "ndcg@50" is called "ndcg_at_50", as MLflow's names have no @."""
        round, found = scalars(line)
        metrics = [Metric(name.replace("@", "_at_"), value, 0, round) for name, value in found.items()]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def end(self, state: str) -> None:
        """Keep the run's settings and metrics with it, and close it."""
        for name in ("config.yaml", FILE):
            self._client.log_artifact(self._run, str(self._folder / name))
        self._client.set_terminated(self._run, "FINISHED" if state == "completed" else "FAILED")
