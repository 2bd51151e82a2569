"""Selection, exploration and stop policies of alchemy."""

from .base import (
    Candidate,
    Choice,
    Exploration,
    Explorer,
    Pick,
    PolicyError,
    Pool,
    RoundFacts,
    Selector,
    Session,
    SessionFactory,
    StopReason,
    StopRule,
    WalkerReport,
)
from .calibration import (
    Calibration,
    ElementCalibration,
    fit_calibration,
    fresh_weights,
    worst_decile,
)
from .diversity import FarthestPoint, Lcmd, MaxDist
from .fidelity_choice import Fixed, Level, Shares, ValuePerCost
from .goals import (
    AllGoals,
    BarrierError,
    CandidateFraction,
    Coverage,
    ElementForceRmse,
    LabelCost,
    ModelLimited,
    Stalled,
)
from .guards import Guards
from .hopping import BasinHopping
from .md import MolecularDynamics
from .recipes import Recipe
from .reico import Reico
from .selectors import CalibratedError, DpGen, FirstCome, Random
from .splits import leak_proof_split
from .stops import FreshForceRmse, LabelCount, Rounds, WallTime
from .ts import TransitionStates

__all__ = [
    "AllGoals",
    "BarrierError",
    "BasinHopping",
    "CalibratedError",
    "Calibration",
    "Candidate",
    "CandidateFraction",
    "Choice",
    "Coverage",
    "DpGen",
    "ElementCalibration",
    "ElementForceRmse",
    "Exploration",
    "Explorer",
    "FarthestPoint",
    "FirstCome",
    "Fixed",
    "FreshForceRmse",
    "Guards",
    "LabelCost",
    "LabelCount",
    "Lcmd",
    "Level",
    "MaxDist",
    "ModelLimited",
    "MolecularDynamics",
    "Pick",
    "PolicyError",
    "Pool",
    "Random",
    "Recipe",
    "Reico",
    "RoundFacts",
    "Rounds",
    "Selector",
    "Session",
    "SessionFactory",
    "Shares",
    "Stalled",
    "StopReason",
    "StopRule",
    "TransitionStates",
    "ValuePerCost",
    "WalkerReport",
    "WallTime",
    "fit_calibration",
    "fresh_weights",
    "leak_proof_split",
    "worst_decile",
]
