"""Compiled graphs in the place of PyTorch, behind `Committee`: the same prediction, found sooner."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import Batch
from .derivatives import stresses_of, voigt
from .graphs import find
from .model import Tace
from .prediction import CommitteePrediction
from .recorded import recordable
from .recording import Function, batch_tensors, fits, weights

log = logging.getLogger("tace")


class Graphs:
    """A graph and the weights of every member that it is called with, one after another."""

    def __init__(self, members: Sequence[tuple[Function, list[Tensor]]]) -> None:
        self.members = tuple(members)
        self.failed = False

    @classmethod
    def of(cls, members: Sequence[Tace]) -> Graphs | None:
        """None unless every member has a graph on this machine, which members with radial tables may have."""
        found = []
        for member in members:
            call = find(member)
            if call is None:
                return None
            found.append((call, [x.detach() for x in weights(recordable(member)).values()]))
        return cls(found)

    def takes(self, batch: Batch) -> bool:
        """Whether these structures can be given to a graph; PyTorch takes single atoms."""
        return not self.failed and fits(batch)

    def prediction(
        self, batch: Batch, *, member_forces: bool, stress: bool, features: bool
    ) -> CommitteePrediction | None:
        """As `Committee.evaluate_batch`; None, and a warning in the log, if a graph fails."""
        tensors = batch_tensors(batch)
        try:
            found = [call(values, tensors) for call, values in self.members]
        except RuntimeError as error:
            self.failed = True
            log.warning("the compiled graph fails, PyTorch does it from here on: %s", str(error)[:300])
            return None
        energies, forces, slopes, described = zip(*found, strict=True)
        stresses = None
        if stress:
            each = torch.stack([voigt(stresses_of(slope, batch)) for slope in slopes])
            stresses = (each if member_forces else each.mean(0, keepdim=True)).numpy()
        stacked = torch.stack(forces).numpy()
        return CommitteePrediction(
            n_atoms=batch.n_atoms.numpy(),
            energies=torch.stack(energies).numpy(),
            mean_forces=stacked.mean(0),
            forces=stacked if member_forces else None,
            stresses=stresses,
            features=described[0].double().numpy() if features else None,
        )
