"""Copies a run's metrics and scores to Weights & Biases, MLflow or trackio.

    FixedReplayRunner.trackers = [@WandbTracker()]

No tracker is ever needed: metrics.csv and scores.csv hold all that one is told.
tracked.json says what it has been told, so that a resumed run repeats nothing.
A tracker that cannot be started is an error; one that fails later is left out
with a warning, and training goes on.
"""

import abc
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import importlib
import pathlib
import secrets
import time
from typing import Any, ClassVar

from absl import logging
import gin

from batch_rl_dr3.config import errors, gin_files
from batch_rl_dr3.runs import atomic, records, run_directory

_Settings = Mapping[str, Any]
# What is told apart, as scores come later than the metrics of their step.
_METRICS, _SCORES = 'metrics', 'scores'
_SCHEMA = {
  '*': {'id!': 'word', f'{_METRICS}!': 'code', f'{_SCORES}!': 'code'},
}


@dataclasses.dataclass
class Tracker(abc.ABC):
  """Where numbers are copied to; `package` has to be installed for it."""

  package: ClassVar[str]

  def load(self) -> Any:
    """Returns the package's module, or raises a ConfigError."""
    try:
      return importlib.import_module(self.package)
    except ImportError as error:
      raise errors.ConfigError(
        f'{type(self).__name__} needs {self.package}: pip install '
        f'{self.package}, or train without it ({error}).'
      ) from error

  @abc.abstractmethod
  def start(self, name: str, settings: _Settings, known: str | None) -> str:
    """Begins a run, or goes on with the one whose id is known; returns it."""

  @abc.abstractmethod
  def log(self, values: Mapping[str, float], steps: int) -> None:
    """Adds what was measured after so many gradient steps."""

  @abc.abstractmethod
  def close(self) -> None:
    """Says that no more comes from this process."""


@gin.configurable
@dataclasses.dataclass
class WandbTracker(Tracker):
  """Weights & Biases; mode 'offline' writes below ./wandb, for `wandb sync`."""

  package = 'wandb'
  project: str = 'batch_rl_dr3'
  entity: str | None = None
  mode: str | None = None

  def start(self, name: str, settings: _Settings, known: str | None) -> str:  # noqa: D102
    wandb = self.load()
    self._run = wandb.init(
      project=self.project,
      entity=self.entity,
      mode=self.mode,
      id=known or secrets.token_hex(4),
      # Offline, wandb ignores it and says so.
      resume=None if self.mode == 'offline' else 'allow',
      name=name,
      group=f'{settings.get("game")} {settings.get("method")}',
      config=dict(settings),
      settings=wandb.Settings(console='off', quiet=True),
    )
    # Scores may come late, and wandb's own steps may not go back.
    self._run.define_metric('gradient_steps')
    self._run.define_metric('*', step_metric='gradient_steps')
    return str(self._run.id)

  def log(self, values: Mapping[str, float], steps: int) -> None:  # noqa: D102
    self._run.log({**values, 'gradient_steps': steps})

  def close(self) -> None:  # noqa: D102
    self._run.finish()


@gin.configurable
@dataclasses.dataclass
class MlflowTracker(Tracker):
  """MLflow, at tracking_uri or where MLFLOW_TRACKING_URI says."""

  package = 'mlflow'
  experiment: str = 'batch_rl_dr3'
  tracking_uri: str | None = None

  def start(self, name: str, settings: _Settings, known: str | None) -> str:  # noqa: D102
    mlflow = self.load()
    self._entities = mlflow.entities
    client = self._client = mlflow.MlflowClient(self.tracking_uri)
    self._id = known or ''
    if not known:
      found = client.get_experiment_by_name(self.experiment)
      experiment = (
        found.experiment_id
        if found
        else client.create_experiment(self.experiment)
      )
      self._id = str(client.create_run(experiment, run_name=name).info.run_id)
      params = [mlflow.entities.Param(k, str(v)) for k, v in settings.items()]
      client.log_batch(self._id, params=params)
    return self._id

  def log(self, values: Mapping[str, float], steps: int) -> None:  # noqa: D102
    now = int(1000 * time.time())
    metrics = [
      self._entities.Metric(name, float(value), now, steps)
      for name, value in values.items()
    ]
    self._client.log_batch(self._id, metrics=metrics)

  def close(self) -> None:  # noqa: D102
    self._client.set_terminated(self._id)


@gin.configurable
@dataclasses.dataclass
class TrackioTracker(Tracker):
  """trackio: on this machine, or in a Space of the Hugging Face Hub."""

  package = 'trackio'
  project: str = 'batch_rl_dr3'
  space_id: str | None = None

  def start(self, name: str, settings: _Settings, known: str | None) -> str:  # noqa: D102
    self._trackio = self.load()
    # It knows a run by its name alone.
    known = known or f'{name} {secrets.token_hex(4)}'
    self._trackio.init(
      project=self.project,
      space_id=self.space_id,
      name=known,
      config=dict(settings),
      resume='allow',
    )
    return known

  def log(self, values: Mapping[str, float], steps: int) -> None:  # noqa: D102
    self._trackio.log(dict(values), step=steps)

  def close(self) -> None:  # noqa: D102
    self._trackio.finish()


def settings_of(provenance: _Settings, config: str) -> dict[str, Any]:
  """Returns plain values: what a run is, how it is scored, what gin binds."""
  plain = (str, int, float, bool)
  facts = {**provenance, **provenance['protocol']}
  bindings = gin_files.read_bindings((), config.splitlines())
  return {n: v for n, v in facts.items() if isinstance(v, plain)} | {
    n: v if isinstance(v, plain) else repr(v) for n, v in bindings.items()
  }


class Tracking:
  """The trackers of one run, told everything once."""

  def __init__(
    self,
    trackers: Sequence[Tracker] = (),
    folder: pathlib.Path = pathlib.Path(),
    name: str = '',
    settings: _Settings | None = None,
    check: atomic.Check = atomic.unchecked,
  ):
    """Starts them; `folder` is the run directory, locked.

    A ConfigError if one cannot be started, or there are two of a kind.
    """
    self._path = folder / run_directory.TRACKED
    self._check = check
    self._trackers = {type(each).__name__: each for each in trackers}
    if len(self._trackers) != len(trackers):
      raise errors.ConfigError('trackers has two of one kind; leave one out.')
    if not trackers:
      return
    mend = 'Remove it; the trackers then begin new runs.'
    self._told: dict[str, Any] = records.read(self._path, _SCHEMA, mend) or {}
    for kind, tracker in self._trackers.items():
      entry = self._told.setdefault(kind, {_METRICS: -1, _SCORES: -1})
      try:
        entry['id'] = tracker.start(name, settings or {}, entry.get('id'))
      except errors.BatchRLError:
        raise
      except Exception as error:  # Each package has kinds of its own.
        raise errors.ConfigError(
          f'{kind} cannot be started: {errors.one_line(error)}. Mend that, or '
          'train without it.'
        ) from error
    atomic.write_json(self._path, self._told, check)

  def log(
    self, values: Mapping[str, float], steps: int, is_score: bool
  ) -> None:
    """Tells those that have not been told yet of these gradient steps."""
    kind = _SCORES if is_score else _METRICS
    new = [name for name in self._trackers if self._told[name][kind] < steps]
    for name in new:
      self._told[name][kind] = steps
    if new:  # Before it is told, so that a kill loses a row and repeats none.
      atomic.write_json(self._path, self._told, self._check)
    for name in new:
      try:
        self._trackers[name].log(values, steps)
      except Exception as error:
        del self._trackers[name]
        logging.warning(
          '%s failed at gradient step %d and is left out: %s',
          name,
          steps,
          errors.one_line(error),
        )

  def close(self) -> None:
    """Closes all of them, whatever they raise."""
    for tracker in self._trackers.values():
      with contextlib.suppress(Exception):
        tracker.close()
