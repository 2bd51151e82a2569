"""What is wrong with a set of labels, found before anything is trained on it.

Silent mistakes are the dear ones: forces of fixed atoms read as zero, kcal/mol taken for eV, a stress with
VASP's sign, two calculations that disagree. Every finding names the frames to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from ase.data import covalent_radii

from .compositions import composition_residuals, heat_of
from .consistency import MIN_PAIRS, Slope, conditions, energy_force, energy_stress, guesses
from .data import Labelled
from .keys import VASP_ORDER
from .neighbors import find_pairs
from .quantities import LABELS
from .readers import has
from .units import conversion

Severity = Literal["error", "warning", "note"]

TOP = 10  # frames named by a finding
COINCIDENT_A = 0.1
OVERLAP = 0.3  # of the sum of covalent radii
FORCE_RMS_EV_PER_A = (1e-4, 100.0)
ENERGY_STD_EV = 50.0  # per atom, after a fit to compositions
STRESS_RMS_EV_PER_A3 = 3.0  # 480 GPa
ENERGY_Z, FORCE_Z = 15.0, 8.0  # robust deviations of an outlier; of forces in the logarithm
SPREAD_EV = (0.002, 0.02)  # least deviation per atom: of one composition, and of a fit to several
_FEWEST = 20  # frames below which there is no outlier


@dataclass(frozen=True)
class Finding:
    """`error`: cannot be trained on or is certainly wrong; `warning`: look at it; `note`: good to know."""

    kind: str
    severity: Severity
    message: str
    frames: tuple[str, ...] = ()


def check_labels(frames: Sequence[Labelled]) -> list[Finding]:
    """All that is found, errors first; clean data give an empty list."""
    named = [(f.name or f"frame {n} ({f.atoms.get_chemical_formula()})", f) for n, f in enumerate(frames)]
    findings, sound = _broken(named)
    present = sorted({name for _, f in sound for name in (*_OWN, *f.labels) if has(f, name)})
    for fidelity in dict.fromkeys(f.fidelity for _, f in sound):
        own = [(name, f) for name, f in sound if f.fidelity == fidelity]
        found = _missing(own, present)
        for check in _OF_A_FIDELITY:
            found += check(own)
        label = "" if fidelity == "default" else f"{fidelity}: "
        findings += [Finding(f.kind, f.severity, label + f.message, f.frames) for f in found]
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda f: order.index(f.severity))


def summary(findings: Sequence[Finding]) -> str:
    """Lines for a terminal."""
    if not findings:
        return "labels: nothing wrong was found"
    lines = []
    for f in findings:
        lines.append(f"{f.severity}: {f.message}")
        lines += [f"    {name}" for name in f.frames[:TOP]]
        if len(f.frames) > TOP:
            lines.append(f"    and {len(f.frames) - TOP} more")
    return "\n".join(lines)


Named = Sequence[tuple[str, Labelled]]
_OWN = ("energy", "forces", "stress")


def _broken(named: Named) -> tuple[list[Finding], Named]:
    """Frames that cannot be used at all, and the others."""
    bad: dict[str, list[str]] = {}
    close: list[str] = []
    sound = []
    for name, frame in named:
        what = _defects(frame)
        if not what:
            nearest = _overlap(frame)
            if nearest < COINCIDENT_A:
                what = ["overlap"]
            elif nearest < np.inf:
                close.append(f"{name}: {nearest:.2f} Å")
        for kind in what:
            bad.setdefault(kind, []).append(name)
        if not what:
            sound.append((name, frame))
    texts = {
        "not_finite": "positions or labels are not finite in {}",
        "shape": "labels have the wrong shape in {}",
        "cell": "a stress without a periodic volume, or a periodic cell without volume, in {}",
        "overlap": f"atoms closer than {COINCIDENT_A} Å in {{}}",
    }
    found = [Finding(k, "error", texts[k].format(_count(v)), tuple(v)) for k, v in bad.items()]
    if close:
        message = f"atoms closer than {OVERLAP} of their covalent distance in {_count(close)}"
        found.append(Finding("close", "warning", message, tuple(close)))
    return found, sound


def _defects(frame: Labelled) -> list[str]:
    atoms, n = frame.atoms, len(frame.atoms)
    energy = None if frame.energy_eV is None else np.asarray(frame.energy_eV, dtype=float)
    table: list[tuple[np.ndarray | None, tuple[int, ...] | None, bool]] = [
        (energy, (), False),
        (frame.forces_eV_per_A, (n, 3), False),
        (frame.stress_eV_per_A3, (6,), False),
    ]
    for label, value in frame.labels.items():
        quantity = LABELS.get(label)
        shape = None if quantity is None else quantity.shape
        if label == "hessian":
            shape = (3 * n, 3 * n)
        elif quantity is not None and quantity.scope == "atom":
            shape = (n, *quantity.shape)
        of_atoms = label != "hessian" and np.shape(value)[:1] == (n,)
        table.append((value, shape, of_atoms if quantity is None else quantity.scope == "atom"))
    what = set()
    needs_volume = frame.stress_eV_per_A3 is not None or bool(atoms.pbc.all())
    volume = abs(atoms.cell.volume) if atoms.pbc.all() else 0.0
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        what.add("not_finite")
    elif (atoms.cell.lengths()[atoms.pbc] < 1e-6).any() or (needs_volume and volume < 1e-6):
        what.add("cell")
    for array, needed, partial in table:
        if array is None:
            continue
        if needed is not None and np.shape(array) != needed:
            what.add("shape")
        elif (np.isinf(array) if partial else ~np.isfinite(array)).any():
            what.add("not_finite")
    return sorted(what)


def _overlap(frame: Labelled) -> float:
    """The smallest distance that is too short, Å; infinite if none is."""
    atoms = frame.atoms
    radii = covalent_radii[atoms.numbers]
    cutoff = max(2 * OVERLAP * float(radii.max()), COINCIDENT_A)
    try:
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=cutoff)
    except ValueError:
        return np.inf
    step = atoms.positions[pairs.i] - atoms.positions[pairs.j] - pairs.shift @ atoms.cell.array
    distance = np.sqrt((step**2).sum(1))
    limit = np.maximum(OVERLAP * (radii[pairs.i] + radii[pairs.j]), COINCIDENT_A)
    return float(distance[distance < limit].min(initial=np.inf))


def _missing(own: Named, present: Sequence[str]) -> list[Finding]:
    lacks = {name: sum(not has(f, name) for _, f in own) for name in present}
    some = [f"{name} in {n} of {len(own)}" for name, n in lacks.items() if n]
    return [Finding("missing", "note", f"missing labels: {', '.join(some)}")] if some else []


def _slopes(own: Named) -> list[Finding]:
    frames = [f for _, f in own]
    both = sum(f.energy_eV is not None and f.forces_eV_per_A is not None for f in frames)
    n_atoms = float(np.median([len(f.atoms) for f in frames]))
    slope = energy_force(frames)
    if slope.wrong:
        return [_wrong_slope(slope, "forces", n_atoms, 0.0)]
    stress = energy_stress(frames)
    if stress.wrong:
        volumes = [f.atoms.cell.volume for f in frames if f.stress_eV_per_A3 is not None]
        return [_wrong_slope(stress, "stress", n_atoms, float(np.median(volumes)))]
    if stress.pairs >= MIN_PAIRS and abs(stress.rank) < 0.95:
        turned = [
            replace(f, stress_eV_per_A3=f.stress_eV_per_A3[VASP_ORDER])
            for f in frames
            if f.stress_eV_per_A3 is not None
        ]
        if abs(rank := energy_stress(turned).rank) > max(0.95, abs(stress.rank) + 0.05):
            text = (
                "the shear stresses seem to stand in VASP's order, xx yy zz xy yz zx (rank correlation with "
                f"the energy {stress.rank:.2f} as they are, {rank:.3f} in that order)"
            )
            return [Finding("energy_stress", "error", text)]
    untested = not slope.known and not stress.known and both >= _FEWEST
    return [_unclear(slope)] if untested else []


def _unclear(slope: Slope) -> Finding:
    if slope.pairs < 4 * MIN_PAIRS or slope.reach_A > 0.3:
        text = f"units and sign of the forces were not tested: too few pairs of near frames ({slope.pairs})"
        return Finding("energy_force", "note", text)
    text = (
        f"energies and forces do not belong together: over {slope.pairs} pairs of near frames the energy "
        f"difference hardly follows the work of the forces (rank correlation {slope.rank:.2f})"
    )
    return Finding("energy_force", "warning", text)


def _wrong_slope(slope: Slope, what: str, n_atoms: float, volume: float) -> Finding:
    likely = guesses(slope.slope, what=what, n_atoms=n_atoms, volume=volume)
    reason = f"; most likely {' or '.join(likely[:3])}" if likely else "; energies or forces are wrong"
    text = (
        f"the energy changes by {slope.slope:.4g} times the work of the {what} ({slope.pairs} pairs of near "
        f"frames; should be 1){reason}"
    )
    return Finding("energy_force" if what == "forces" else "energy_stress", "error", text)


def _plausible(own: Named) -> list[Finding]:
    found = []
    forces = [f.forces_eV_per_A for _, f in own if f.forces_eV_per_A is not None and len(f.atoms) > 1]
    if forces:
        rms = float(np.sqrt(np.concatenate([(x**2).sum(1) for x in forces]).mean()))
        low, high = FORCE_RMS_EV_PER_A
        if not low < rms < high:
            text = f"the rms force is {rms:.3g} eV/Å, outside {low:g} … {high:g}: zeros, or another unit?"
            found.append(Finding("force_size", "warning", text))
    stress = [f.stress_eV_per_A3 for _, f in own if f.stress_eV_per_A3 is not None]
    if stress and (rms := float(np.sqrt(np.mean(np.square(stress))))) > STRESS_RMS_EV_PER_A3:
        in_gpa = rms / conversion("GPa", "eV/A^3")
        text = f"the rms stress is {rms:.3g} eV/Å³ ({in_gpa:.0f} GPa): is it in GPa, kbar or a virial?"
        found.append(Finding("stress_size", "warning", text))
    energies = [(f, f.energy_eV) for _, f in own if f.energy_eV is not None]
    fitted = composition_residuals([f for f, _ in energies]) if len(energies) >= 3 else np.zeros(1)
    if len(energies) >= 3 and np.ptp([e for _, e in energies]) == 0:
        text = f"all {len(energies)} energies are {energies[0][1]} eV"
        found.append(Finding("energy_size", "warning", text))
    elif len(energies) >= 3 and (std := float(fitted.std())) > ENERGY_STD_EV:
        text = f"energies scatter by {std:.3g} eV/atom about a fit to compositions: mixed levels or units?"
        found.append(Finding("energy_size", "warning", text))
    return found + _all_electron([f for f, _ in energies])


def _all_electron(frames: Sequence[Labelled]) -> list[Finding]:
    """Total energies of light elements betray their unit: Thomas-Fermi gives them within a third.

    Only for H to Ne, where no pseudopotential comes near the energy of all electrons in another unit.
    """
    light = [f for f in frames if f.atoms.numbers.max() <= 10 and len(f.atoms) > 1]
    if len(light) < max(3, len(frames) // 2):
        return []
    expected = [0.7687 * (f.atoms.numbers ** (7 / 3)).sum() for f in light]  # hartree
    ratio = float(np.median([-(f.energy_eV or 0.0) / e for f, e in zip(light, expected, strict=True)]))
    for unit in ("Ha", "kcal/mol", "kJ/mol"):
        if 0.62 < ratio * conversion(unit, "Ha") < 0.85:
            text = f"the energies look like total energies of all electrons in {unit}, not in eV"
            return [Finding("energy_unit", "warning", text)]
    return []


def _forces_of_nothing(own: Named) -> list[Finding]:
    """Net forces, forces on single atoms, and forces that are exactly zero on some atoms only."""
    lonely, zeroed, net, size = [], [], [], []
    for name, frame in own:
        forces = frame.forces_eV_per_A
        if forces is None:
            continue
        norm, total = np.sqrt((forces**2).sum(1)), float(np.linalg.norm(forces.sum(0)))
        rms = float(np.sqrt((norm**2).mean()))
        in_field = "electric_field" in frame.atoms.info
        if len(forces) == 1:
            if rms > 0.05 and not in_field:
                lonely.append(f"{name}: {rms:.3g} eV/Å")
            continue
        net.append(total / len(forces))
        size.append(rms)
        zero = norm == 0
        fixed = np.zeros(len(zero), dtype=bool)
        for constraint in frame.atoms.constraints:
            if hasattr(constraint, "index"):
                fixed[constraint.index] = True
        unbalanced = total > max(0.05 * rms * np.sqrt(len(forces)), 0.01) and not in_field
        if not zero.all() and rms > 0.01 and ((zero & fixed).any() or (zero.any() and unbalanced)):
            zeroed.append(f"{name}: {int(zero.sum())} of {len(zero)} atoms")
    found = []
    if lonely:
        text = f"a force on {_count(lonely, 'single atom')}"
        found.append(Finding("single_atom", "warning", text, tuple(lonely)))
    if zeroed:
        text = (
            f"forces are exactly zero on some atoms in {_count(zeroed)}, as for fixed atoms: they would be "
            "learnt as zero; write raw forces (apply_constraint=False)"
        )
        found.append(Finding("zero_forces", "warning", text, tuple(zeroed)))
    if net and not zeroed and np.mean(net) > max(0.1 * float(np.mean(size)), 0.01):
        text = f"forces do not add up to zero: {np.mean(net):.3g} eV/Å per atom on average"
        found.append(Finding("net_force", "note", text))
    return found


def _duplicates(own: Named) -> list[Finding]:
    first: dict[bytes, tuple[str, Labelled]] = {}
    same: list[str] = []
    differ: list[str] = []
    worst: dict[str, float] = {}
    for name, frame in own:
        atoms = frame.atoms
        parts = [np.rint(np.asarray(x) * 1e6).astype(np.int64) for x in (atoms.positions, atoms.cell.array)]
        key = b"|".join([atoms.numbers.tobytes(), atoms.pbc.tobytes(), *(p.tobytes() for p in parts)])
        key += b"|" + conditions(frame)
        if key not in first:
            first[key] = (name, frame)
            continue
        other_name, other = first[key]
        off = _difference(frame, other)
        large = [n for n, (value, limit) in off.items() if value > limit]
        worst |= {n: max(worst.get(n, 0.0), off[n][0]) for n in large}
        (differ if large else same).append(f"{name} = {other_name}")
    found = []
    if differ:
        text = (
            f"{_count(differ, 'copy', 'copies')} of a structure with other labels (by up to "
            f"{', '.join(f'{v:.3g} {n}' for n, v in worst.items())}): the noise of the labels, or a "
            "condition that was not read"
        )
        found.append(Finding("label_noise", "warning", text, tuple(differ)))
    if same:
        text = f"{_count(same, 'exact copy', 'exact copies')} of a structure with the same labels"
        found.append(Finding("duplicate", "note", text, tuple(same)))
    return found


def _difference(a: Labelled, b: Labelled) -> dict[str, tuple[float, float]]:
    """Largest difference of each label that both have, and how much of it is round-off or convergence."""
    pairs = {
        "eV": (a.energy_eV, b.energy_eV, 1e-3 * len(a.atoms)),
        "eV/Å": (a.forces_eV_per_A, b.forces_eV_per_A, 0.02),
    }
    for name in a.labels.keys() & b.labels.keys():
        pairs[f"of {name}"] = (a.labels[name], b.labels[name], 0.01 * _largest(a.labels[name]))
    return {
        name: (_largest(np.asarray(x) - np.asarray(y)), limit)
        for name, (x, y, limit) in pairs.items()
        if x is not None and y is not None and np.shape(x) == np.shape(y)
    }


def _largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array), where=~np.isnan(array), initial=0.0))


def outliers(own: Named) -> list[Finding]:
    """Energies far from a fit to compositions, and forces far larger than elsewhere; 20 frames at least."""
    found = []
    with_energy = [(name, f) for name, f in own if f.energy_eV is not None and len(f.atoms) > 1]
    if len(with_energy) >= _FEWEST:
        values = composition_residuals([f for _, f in with_energy])
        heat = heat_of([f for _, f in with_energy])
        several = len({np.sort(f.atoms.numbers).tobytes() for _, f in with_energy}) > 1
        floor = SPREAD_EV[several]  # with few compositions the fit passes through them
        names = [n for n, _ in with_energy]
        found += _far(names, values, floor=floor, limit=ENERGY_Z, what="energy", heat=heat)
    with_forces = [(n, f.forces_eV_per_A) for n, f in own if f.forces_eV_per_A is not None]
    largest = [(n, float(np.sqrt((x**2).sum(1).max()))) for n, x in with_forces]
    moving = [(n, x) for n, x in largest if x > 1e-3]
    if len(moving) >= _FEWEST:
        logs = np.log([x for _, x in moving])
        found += _far([n for n, _ in moving], logs, floor=0.25, limit=FORCE_Z, what="force")
    return found


def _far(
    names: Sequence[str],
    values: np.ndarray,
    *,
    floor: float,
    limit: float,
    what: str,
    heat: np.ndarray | float = 0.0,
) -> list[Finding]:
    middle = float(np.median(values))
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), floor)
    above = values - middle
    score = above / spread if what == "force" else np.maximum(-above, above - heat) / spread
    far = np.flatnonzero(score > limit)
    if not len(far):
        return []
    far = far[np.argsort(-score[far])]
    if what == "force":
        listed = [f"{names[int(n)]}: largest force {np.exp(values[n]):.3g} eV/Å" for n in far]
    else:
        listed = [f"{names[int(n)]}: {values[n] - middle:+.3g} eV/atom" for n in far]
    text = f"{what} far outside the rest ({limit:g} robust deviations) in {_count(listed)}"
    return [Finding(f"{what}_outlier", "warning", text, tuple(listed))]


_OF_A_FIDELITY: tuple[Callable[[Named], list[Finding]], ...] = (
    _slopes, _plausible, _forces_of_nothing, _duplicates, outliers,
)  # fmt: skip


def _count(items: Sequence[str], noun: str = "frame", plural: str = "") -> str:
    return f"{len(items)} {noun if len(items) == 1 else plural or noun + 's'}"
