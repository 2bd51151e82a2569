"""The heavy-tailed divergence of training, told from its history (TACE paper §2.13).

On data such as REICO's, whose forces are large and of many kinds, the validation force RMSE of ACE-type
models turns up, or stays far above the MAE, while the MAE still falls: a few frames carry the squared
error. Later both grow. Long-range electrostatics (LES) cures it; robust losses and weights help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RMSE, MAE = "force_rmse_eV_per_A", "force_mae_eV_per_A"
RISE = 1.2  # RMSE over its best: more than the scatter of validations of a converging run
BOTH = 1.5  # and of the MAE, for an outright divergence
TAIL = 4.0  # RMSE/MAE; 1.25 of a normal and 1.41 of a Laplace distribution, 1.5 to 2.5 of usual force errors
LEAST = 4  # validations; fewer are no history
CARRIED = 0.5  # share of the squared error that the named frames carry
FORCE_CAP_eV_per_A = 50.0


@dataclass(frozen=True)
class Divergence:
    """What a history shows; `kind` is 'turned', 'tail' or 'both'."""

    kind: str
    since_step: int  # of the best RMSE
    best_rmse: float
    last_rmse: float
    mae_then: float
    last_mae: float
    message: str


@dataclass(frozen=True)
class Carrier:
    """A frame that carries a share of the squared force error."""

    name: str
    share: float
    rmse_eV_per_A: float
    max_force_eV_per_A: float  # of its labels


def diagnose(history: Sequence[Mapping[str, Any]]) -> Divergence | None:
    """Look for a divergence in the entries of `FitResult.history`; None if there is none.

    Entries without forces, or with None for what is not finite, are passed over. The last values are
    medians of three, so that one bad validation is no divergence.
    """
    seen = [entry for entry in history if None not in (entry.get(RMSE), entry.get(MAE))]
    if len(seen) < LEAST:
        return None
    rmse = np.array([entry[RMSE] for entry in seen])
    mae = np.array([entry[MAE] for entry in seen])
    best = int(np.argmin(rmse))
    last_rmse, last_mae = float(np.median(rmse[-3:])), float(np.median(mae[-3:]))
    rise, mae_then = last_rmse / rmse[best], float(mae[best])
    step = int(seen[best]["step"])
    if rise > BOTH and last_mae > BOTH * mae_then:
        kind, what = "both", f"RMSE and MAE both grew, the RMSE {rise:.1f} times, since step {step}"
    elif rise > RISE and last_mae <= mae_then:
        kind = "turned"
        what = f"the RMSE rose {rise:.1f} times since step {step}, while the MAE fell"
    elif last_rmse > TAIL * last_mae and last_mae < mae[0]:
        kind = "tail"
        what = f"the RMSE stays {last_rmse / last_mae:.0f} times the MAE, which falls"
    else:
        return None
    message = (
        f"heavy-tailed errors: {what} (RMSE {1e3 * last_rmse:.4g}, MAE {1e3 * last_mae:.4g} meV/Å): "
        "a few frames carry the squared error"
        if kind != "both"
        else f"the training diverged: {what}"
    )
    return Divergence(kind, step, float(rmse[best]), last_rmse, mae_then, last_mae, message)


def carriers(
    names: Sequence[str], wrong: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, most: int = 10
) -> list[Carrier]:
    """The worst frames that together carry half of the squared force error, worst first.

    Args:
        wrong, labels: [A,3] of each frame, eV/Å.
    """
    squares = np.array([float((x**2).sum()) for x in wrong])
    total = float(squares.sum())
    found: list[Carrier] = []
    for n in np.argsort(-squares, kind="stable")[:most]:
        if total == 0.0 or sum(c.share for c in found) >= CARRIED:
            break
        largest = float(np.sqrt((labels[n] ** 2).sum(1)).max(initial=0.0))
        rmse = float(np.sqrt((wrong[n] ** 2).mean()))
        found.append(Carrier(names[n], float(squares[n]) / total, rmse, largest))
    return found


def advice(
    *, les: bool, forces_loss: str, cap: float | None, largest_force_eV_per_A: float
) -> list[str]:
    """What helps and has not been done yet, in the keys of a run file."""
    found = []
    if not les:
        found.append("model.les: true (long-range electrostatics; what cured it in the TACE paper)")
    if forces_loss == "mse":
        found.append("train.loss_kinds: {forces: huber} (large errors count linearly)")
    limit = FORCE_CAP_eV_per_A
    if cap is None and largest_force_eV_per_A > limit:
        found.append(f"data.force_cap_eV_per_A: {limit:g} (frames with larger forces weigh less)")
    found.append("a smaller train.learning_rate, and a look at the labels of the frames named here")
    return found


def story(found: Divergence, worst: Sequence[Carrier], helps: Sequence[str]) -> list[str]:
    """Lines for a person."""
    lines = [found.message]
    if worst:
        share = sum(c.share for c in worst)
        lines.append(f"{share:.0%} of the squared force error of the validation set is in:")
        lines += [
            f"  {c.name}: {c.share:.0%}, RMSE {1e3 * c.rmse_eV_per_A:.4g} meV/Å, largest label "
            f"{c.max_force_eV_per_A:.3g} eV/Å"
            for c in worst
        ]
    return [*lines, "what helps:", *(f"  {line}" for line in helps)]


def to_json(found: Divergence, worst: Sequence[Carrier], helps: Sequence[str]) -> dict[str, Any]:
    """For the report."""
    return {**asdict(found), "frames": [asdict(c) for c in worst], "what_helps": list(helps)}
