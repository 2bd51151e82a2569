
"""What flows between the engine and a policy: frozen values, and the protocols that policies
fulfil.

Units: Å, eV, fs, K; axes: S frames, A atoms of all frames one after another, T training frames, D
features.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from ase import Atoms

from tace.errors import TaceError
from tace.prediction import CommitteePrediction

if TYPE_CHECKING:
    from .calibration import Calibration

class Session(Protocol):
    """What the committee says of the same frames, moved.

    Args:
        positions_A: [A,3] of all frames, one after another.
        member_forces: of each member too, which the spread needs.
        cells_A: [S,3,3]; None for those that the frames came with.
        stress: stresses too. Only an explorer with a barostat gives cells or asks for stresses.
    """

    def __call__(
        self,
        positions_A: np.ndarray,
        member_forces: bool,
        *,
        cells_A: np.ndarray | None = None,
        stress: bool = False,
    ) -> CommitteePrediction: ...


SessionFactory = Callable[[Sequence[Atoms]], Session]


class PolicyError(TaceError):
    """A policy was given options or data that it cannot work with."""


@dataclass(frozen=True)
class Candidate:
    """A structure that an explorer offers for labelling."""

    atoms: Atoms
    source: str  # which explorer: 'md' | 'ts'
    reason: str  # md: 'sampled', 'crossed', 'energy-spread', … (docs/dynamics.md); ts: see `ts.search`
    walker: int
    step: int
    time_fs: float
    temperature_K: float  # of the thermostat
    expected_error_eV_per_A: float  # of the worst decile of moving atoms


@dataclass(frozen=True)
class WalkerReport:
    walker: int
    start_index: int  # −1: the structure is the explorer's own
    temperature_K: float
    steps: int
    outcome: str  # 'finished' | 'label-stop' | 'abort' | a guard's code
    time_fs: float
    max_expected_error_eV_per_A: float  # NaN when it never had one
    drift_eV_per_atom: float = math.nan  # of the conserved energy: error of the time step


@dataclass(frozen=True)
class Exploration:
    candidates: tuple[Candidate, ...]
    walkers: tuple[WalkerReport, ...]
    force_calls: int  # structures evaluated: a batch of eight counts eight
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON-able, for the round's report


class Explorer(Protocol):
    """Start structures in, candidates out; same rng, same answer; the starts stay as they are.

    A class that makes structures of its own says `grows = True`: its walkers may report the start index −1,
    and its candidates may have more atoms than their start, after those of it.
    """

    def __call__(
        self,
        starts: Sequence[Atoms],
        session_factory: SessionFactory,
        calibration: Calibration,
        rng: np.random.Generator,
    ) -> Exploration: ...


@dataclass(frozen=True)
class Pool:
    """The scored candidates of a round, and what is trained on already.

    What has a default may be left out: a selector that needs it says so, or does without.
    """

    uids: tuple[str, ...]
    expected_error_eV_per_A: np.ndarray  # [S], worst decile of atoms
    features: np.ndarray  # [S, D]
    sources: tuple[str, ...]
    max_force_eV_per_A: np.ndarray  # [S], of the committee mean
    train_features: np.ndarray  # [T, D]
    deviation_eV_per_A: np.ndarray | None = None
    """[S], largest over atoms of √(mean_k |F_k − F̄|²), not calibrated: DP-GEN's model deviation."""
    steps: np.ndarray | None = None  # [S], of the walk at which a frame was met; −1 without a walk
    reasons: tuple[str, ...] = ()  # why each was offered: 'crossed', 'failed', …
    environments: tuple[frozenset[str], ...] = ()  # kinds of atoms in each frame
    train_environments: Mapping[str, int] = field(default_factory=dict)  # training frames with each
    test_features: np.ndarray | None = None  # [U, D], of the frozen test set
    energy_spread_eV_per_atom: np.ndarray | None = None  # [S], of the committee
    train_energy_spread_eV_per_atom: np.ndarray | None = None  # [T], of the same on what it was trained on

    def __post_init__(self) -> None:
        frames = len(self.uids)
        if len(set(self.uids)) != frames:
            raise PolicyError("a uid stands twice in the pool; offer each structure once")
        needed = ("expected_error_eV_per_A", "features", "sources", "max_force_eV_per_A")
        optional = (
            "deviation_eV_per_A", "steps", "reasons", "environments", "energy_spread_eV_per_atom",
        )  # fmt: skip
        for name in (*needed, *optional):
            value = getattr(self, name)
            absent = name in optional and (value is None or (isinstance(value, tuple) and not value))
            if not absent and len(value) != frames:
                raise PolicyError(f"the pool has {frames} uids but {name} has length {len(value)}")
        for name, others in (("training", self.train_features), ("test", self.test_features)):
            if not frames or others is None or not len(others):
                continue
            if self.features.shape[1] != others.shape[1]:
                raise PolicyError(
                    f"pool features have {self.features.shape[1]} columns, {name} features "
                    f"{others.shape[1]}; both must come from the same committee"
                )

    def part(self, keep: Sequence[int], *, known: Sequence[int] = ()) -> Pool:
        """The frames `keep`, in that order; the frames `known` count as trained on."""
        train, counts = self.train_features, Counter(self.train_environments)
        if len(known):
            train = np.concatenate([train.reshape(-1, self.features.shape[1]), self.features[list(known)]])
            if self.environments:
                counts.update(name for i in known for name in self.environments[i])

        def rows(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[list(keep)]

        return Pool(
            uids=tuple(self.uids[i] for i in keep),
            expected_error_eV_per_A=self.expected_error_eV_per_A[list(keep)],
            features=self.features[list(keep)],
            sources=tuple(self.sources[i] for i in keep),
            max_force_eV_per_A=self.max_force_eV_per_A[list(keep)],
            train_features=train,
            deviation_eV_per_A=rows(self.deviation_eV_per_A),
            steps=rows(self.steps),
            reasons=tuple(self.reasons[i] for i in keep) if self.reasons else (),
            environments=tuple(self.environments[i] for i in keep) if self.environments else (),
            train_environments=dict(counts),
            test_features=self.test_features,
            energy_spread_eV_per_atom=rows(self.energy_spread_eV_per_atom),
            train_energy_spread_eV_per_atom=self.train_energy_spread_eV_per_atom,
        )


@dataclass(frozen=True)
class Pick:
    index: int  # into the pool
    why: str  # 'error' | 'coverage' | 'energy-spread' | 'random'


@dataclass(frozen=True)
class Choice:
    picks: tuple[Pick, ...]
    rejected: dict[int, str]  # pool index -> reason, for every frame that was not picked


class Selector(Protocol):
    """At most `budget` picks, none twice, best first; a reason for the rest; same rng, same
    answer.

    A class may say `needs_gradients = True`: the features of its pools are then gradients of the
    energy with respect to the readout's weights (`tace.gradient_features`), not invariants of atoms.
    """

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice: ...


@dataclass(frozen=True)
class RoundFacts:
    """What is known at the end of a round. None where it was not measured.

    Fresh means: labels bought in this round, judged by the committee that was never trained on
    them.
    """

    round: int
    target: str  # the fidelity that the campaign is after
    labels: dict[str, int]  # fidelity -> labels in the store
    fresh_force_rmse_eV_per_A: float | None
    fresh_random_force_rmse_eV_per_A: float | None  # on the random slice alone
    fresh_frames: int
    test_force_rmse_eV_per_A: float | None
    wall_s: float  # of the campaign so far
    candidates: int
    candidates_above_threshold: int
    fresh_random_frames: int | None = (
        None  # None: not told, the random slice is then not judged alone
    )
    fresh_element_rmse_eV_per_A: Mapping[str, float] | None = None  # symbol -> on the random slice
    coverage_90: float | None = None  # of the random slice: atoms within their 90 % bound
    barrier_mae_eV: float | None = None  # of the probe reactions
    barriers: int = 0  # how many were compared
    train_force_rmse_eV_per_A: float | None = None  # of the committee mean, on what it was trained on
    label_noise_eV_per_A: float | None = None  # of repeated labels, per component
    labels_cpu_s: float | None = None  # of all labels so far, failed ones too
    unclimbed: tuple[str, ...] = ()  # conditions that dynamics has not yet survived at full length


@dataclass(frozen=True)
class StopReason:
    rule: str
    message: str
    exit_code: int  # 0 done, 4 budget, 5 stalled, 6 model-limited


class StopRule(Protocol):
    """Rounds so far, oldest first, in; a reason to stop, or None, out."""

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None: ...
