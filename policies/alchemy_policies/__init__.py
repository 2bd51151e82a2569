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
from .calibration import Calibration, ElementCalibration, fit_calibration, worst_decile
from .guards import Guards
from .hopping import BasinHopping
from .md import MolecularDynamics
from .recipes import Recipe
from .reico import Reico
from .selectors import CalibratedError, Random
from .stops import FreshForceRmse, LabelCount, Rounds, WallTime
from .ts import TransitionStates

__all__ = [
    "BasinHopping",
    "CalibratedError",
    "Calibration",
    "Candidate",
    "Choice",
    "ElementCalibration",
    "Exploration",
    "Explorer",
    "FreshForceRmse",
    "Guards",
    "LabelCount",
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
    "StopReason",
    "StopRule",
    "TransitionStates",
    "WalkerReport",
    "WallTime",
    "fit_calibration",
    "worst_decile",
]
