"""The run of Lightning's `MLFlowLogger`, in any tracking store.

MLflow has no way to take a logged value back. What a killed start logged behind the checkpoint
stays, and the start that goes on from there, which logs the same once more, leaves it out.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

_MISSING = "RESOURCE_DOES_NOT_EXIST"
_CALLS = ("log_batch", "log_metric", "log_param")


class MLFlowLoggerRun:
    """Goes on with the run id; the values of each key are counted."""

    kind = "mlflow"
    fields: ClassVar = {"run_id": str, "experiment": str, "counts": dict}

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._counts: Counter[str] = Counter()
        """Values of each key, logged so far."""
        self._logged: Counter[tuple[str, int]] = Counter()
        """Key and step of values that are there and will be logged again."""
        self._params: dict[str, str] = {}

    @property
    def begun(self) -> bool:
        """As `LoggerRun.begun`."""
        return bool(self.logger._initialized)

    def takes(self, facts: dict[str, Any]) -> bool:
        """As `LoggerRun.takes`: not if the script names another run or experiment."""
        from mlflow.exceptions import MlflowException

        logger, run_id = self.logger, facts["run_id"]
        if logger._run_id not in (None, run_id) or logger._experiment_name != facts["experiment"]:
            return False
        try:
            info = logger._mlflow_client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code != _MISSING:
                raise
            return False
        if info.lifecycle_stage != "active":
            return False
        logger._run_id = run_id
        return True

    def begin(self, facts: dict[str, Any] | None, *, cut: bool) -> None:
        """As `LoggerRun.begin`."""
        client = self.logger.experiment
        if facts is not None:
            run = client.get_run(facts["run_id"])
            if run.info.status != "RUNNING":
                client.update_run(facts["run_id"], status="RUNNING")
            self._params = dict(run.data.params)
            counts = facts["counts"] if cut else {}
            for key in run.data.metrics:
                history = client.get_metric_history(facts["run_id"], key)
                history.sort(key=lambda value: value.timestamp)
                known = int(counts.get(key, 0)) if cut else len(history)
                self._counts[key] = known
                self._logged.update((key, value.step) for value in history[known:])
        self._filter(client)

    def facts(self) -> dict[str, Any]:
        """As `LoggerRun.facts`."""
        logger = self.logger
        names = {"run_id": logger._run_id, "experiment": logger._experiment_name}
        return {**names, "counts": dict(self._counts)}

    def pending(self) -> list[Any]:
        """As `LoggerRun.pending`: MLflow's own, if it logs asynchronously, cannot be read."""
        return []

    def add_pending(self, rows: list[Any]) -> None:
        """As `LoggerRun.add_pending`."""

    def end(self) -> None:
        """As `LoggerRun.end`."""
        for name in _CALLS:
            vars(self.logger._mlflow_client).pop(name, None)

    def _filter(self, client: Any) -> None:
        """Leave out what the run has, in the methods of the client."""
        batch, metric, param = (getattr(client, name) for name in _CALLS)

        def log_batch(
            run_id: str,
            metrics: Sequence[Any] = (),
            params: Sequence[Any] = (),
            tags: Sequence[Any] = (),
            **more: Any,
        ) -> Any:
            if self._is_own(run_id):
                metrics = [each for each in metrics if self._is_new(each.key, each.step)]
                params = [each for each in params if self._is_new_param(each.key, each.value)]
                if not (metrics or params or tags):
                    return None
            return batch(run_id, metrics=metrics, params=params, tags=tags, **more)

        def log_metric(
            run_id: str,
            key: str,
            value: float,
            timestamp: int | None = None,
            step: int | None = None,
            **more: Any,
        ) -> Any:
            if self._is_own(run_id) and not self._is_new(key, step or 0):
                return None
            return metric(run_id, key, value, timestamp, step, **more)

        def log_param(run_id: str, key: str, value: Any, **more: Any) -> Any:
            if self._is_own(run_id) and not self._is_new_param(key, value):
                return value
            return param(run_id, key, value, **more)

        vars(client).update(log_batch=log_batch, log_metric=log_metric, log_param=log_param)

    def _is_own(self, run_id: str) -> bool:
        return bool(run_id == self.logger._run_id)

    def _is_new(self, key: str, step: int) -> bool:
        """Count a value that is to be logged; whether the run lacks it."""
        self._counts[key] += 1
        if self._logged[key, step] > 0:
            self._logged[key, step] -= 1
            return False
        return True

    def _is_new_param(self, key: str, value: Any) -> bool:
        """Whether the run lacks a parameter: a second value of it would be an error."""
        known = self._params.get(key)
        if known is None:
            return True
        if known != str(value):
            log.warning("MLflow keeps %s=%s: a run's parameters never change", key, known)
        return False
