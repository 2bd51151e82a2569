"""What every stage is given, and how a stage hands tasks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from tace.prediction import CommitteePrediction

from .. import tasks
from ..budget import Budget
from ..config import Campaign
from ..costs import Meter
from ..errors import EnvironmentProblemError
from ..executors import Executor, Task, WorkerKilledError
from ..identity import content_hash, seed_for
from ..label_runners import LabelRunner, WorkerLabels
from ..labelers.base import Labeler, fingerprint, make_labeler, require_elements
from ..progress import Progress
from ..state import Home
from ..store import Store


@dataclass
class Context:
    """The campaign, where it lives, and what runs its tasks."""

    campaign: Campaign
    home: Home
    store: Store
    executor: Executor
    progress: Progress
    fidelities: tuple[str, ...]  # in use: all of the file's, or the subset asked for
    inline: bool
    budget: Budget
    meter: Meter = field(default_factory=Meter)
    open_pairs: tuple[tuple[str, str], ...] = ()  # (uid, fidelity) under way beside the loop (`run.overlap`)
    labelers: dict[str, Labeler] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    label_runner: LabelRunner = None  # type: ignore[assignment]  # None: the executor

    def __post_init__(self) -> None:
        self.label_runner = self.label_runner or WorkerLabels(self.executor)
        for name in self.fidelities:
            chosen = self.campaign.fidelities[name]
            self.labelers[name] = make_labeler(
                chosen.labeler, chosen.options, base_dir=self.campaign.base_dir
            )
            require_elements(self.labelers[name], self.campaign.elements)
            self.fingerprints[name] = fingerprint(self.labelers[name])

    @property
    def target(self) -> str:
        return self.campaign.target

    @property
    def members(self) -> int:
        return self.campaign.model.committee

    def seed(self, *path: int | str) -> int:
        """Seed for (round, stage, item), derived from the campaign's."""
        return seed_for(self.campaign.seed, *path)

    def models(self, round_number: int) -> list[str]:
        """Files of the round's committee."""
        return [str(p) for p in self.home.members(round_number, self.members)]

    def model_set(self, round_number: int) -> str:
        """Name of the round's committee in the store's predictions."""
        return content_hash(["committee", self.campaign.name, round_number, self.members])

    def run(
        self, task: Task, requests: Sequence[dict[str, Any]], *, resource: str, what: str
    ) -> list[dict[str, Any]]:
        """Run tasks that must all succeed, with progress; results in the order of the requests.

        Raises:
            EnvironmentProblemError: a task took its worker down again and again.
            Exception: the first failure of a task, as it was.
        """

        def found(result: dict[str, Any] | BaseException) -> dict[str, Any]:
            if isinstance(result, WorkerKilledError):
                raise EnvironmentProblemError(
                    f"{what}: {result}; out of memory, or killed by hand? The same command continues"
                ) from result
            if isinstance(result, BaseException):
                raise result
            return result

        each = self.run_each(task, requests, resource=resource, what=what, take=found)
        return [found(result) for result in each]

    def run_each(
        self,
        task: Task,
        requests: Sequence[dict[str, Any]],
        *,
        resource: str,
        what: str,
        take: Callable[[dict[str, Any] | BaseException], Any] | None = None,
    ) -> list[dict[str, Any] | BaseException]:
        """Run tasks that may fail, with progress; results or exceptions in the order of the requests.

        Args:
            take: called with each as it comes; what it raises ends the rest.
        """
        results: dict[int, dict[str, Any] | BaseException] = {}

        def done(index: int, result: dict[str, Any] | BaseException) -> None:
            if take is not None:
                take(result)
            results[index] = result
            if not isinstance(result, BaseException):
                self.meter.add(result)
            bar.advance()

        with self.progress.stage(what, len(requests)) as bar:
            self.executor.run(task, requests, resource=resource, on_done=done)
        return [results[index] for index in range(len(requests))]

    def score(
        self,
        round_number: int,
        uids: Sequence[str],
        fidelity: str,
        *,
        name: str,
        gradients: bool = False,
    ) -> CommitteeScores:
        """Predict stored structures with a round's committee, in chunks; kept in the round's directory.

        Args:
            gradients: features are gradients of the readout (`tace.gradient_features`), not invariants.
        """
        name = f"{name}-gradients" if gradients else name
        as_of = self.store.snapshot().last
        chunk = 256
        directory = self.home.round(round_number)
        requests = [
            {
                "store": str(self.home.store),
                "as_of": as_of,
                "uids": list(uids[start : start + chunk]),
                "models": self.models(round_number),
                "fidelity": fidelity,
                "gradients": gradients,
                "out": str(directory / f"score-{name}-{content_hash(list(uids))[:8]}-{start}.npz"),
            }
            for start in range(0, len(uids), chunk)
        ]
        found = self.run(tasks.score, requests, resource="GPU", what=f"score {name}")
        return CommitteeScores.joined([tasks.read_arrays(Path(r["out"])) for r in found])


@dataclass(frozen=True)
class CommitteeScores:
    """Arrays of a `score` task, all structures one after another."""

    n_atoms: np.ndarray  # [S]
    energies_eV: np.ndarray  # [K,S]
    mean_forces_eV_per_A: np.ndarray  # [A,3]
    force_spread_eV_per_A: np.ndarray  # [A]
    features: np.ndarray  # [S,D]

    @classmethod
    def joined(cls, parts: Sequence[dict[str, np.ndarray]]) -> CommitteeScores:
        """Chunks in order; empty arrays when there are none."""
        if not parts:
            return cls(
                np.zeros(0, int), np.zeros((1, 0)), np.zeros((0, 3)), np.zeros(0), np.zeros((0, 0))
            )
        axis = {"energies_eV": 1}
        return cls(
            **{
                f.name: np.concatenate([p[f.name] for p in parts], axis=axis.get(f.name, 0))
                for f in fields(cls)
            }
        )

    def prediction(self) -> CommitteePrediction:
        """The part that error measures need."""
        return CommitteePrediction(self.n_atoms, self.energies_eV, self.mean_forces_eV_per_A)

    def per_structure(self, per_atom: np.ndarray) -> list[np.ndarray]:
        """Cut an array over atoms into one piece per structure."""
        return np.split(per_atom, np.cumsum(self.n_atoms)[:-1]) if len(self.n_atoms) else []
