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
from .md import MolecularDynamics
from .selectors import CalibratedError, Random
from .stops import FreshForceRmse, LabelCount, Rounds, WallTime

__all__ = [
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
    "RoundFacts",
    "Rounds",
    "Selector",
    "Session",
    "SessionFactory",
    "StopReason",
    "StopRule",
    "WalkerReport",
    "WallTime",
    "fit_calibration",
    "worst_decile",
]
