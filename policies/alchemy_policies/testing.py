
"""The laws of the protocols as callable checks, for the tests of anybody's policy.

    from alchemy_policies.testing import check_selector
    def test_my_selector_keeps_the_laws():
        check_selector(MySelector)

Each check takes a function that makes the policy and raises AssertionError with the law that was
broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ase import Atoms

from tace.prediction import CommitteePrediction

from .base import (
    Choice,
    Exploration,
    Explorer,
    PolicyError,
    Pool,
    RoundFacts,
    Selector,
    Session,
    StopRule,
)
from .calibration import Calibration
from .fidelity_choice import FidelityChoice, Level

MakeFidelityChoice = Callable[[], FidelityChoice]
MakeSelector = Callable[[], Selector]
MakeExplorer = Callable[[], Explorer]
MakeStopRule = Callable[[], StopRule]


def random_pool(rng: np.random.Generator, *, frames: int = 40, trained: int = 15) -> Pool:
    """A pool whose expected errors span 1 meV/Å to 10 eV/Å, so that any threshold divides it."""
    return Pool(
        uids=tuple(f"{n:032x}" for n in rng.permutation(frames)),
        expected_error_eV_per_A=10 ** rng.uniform(-3, 1, frames),
        features=rng.normal(size=(frames, 5)),
        sources=("md",) * frames,
        max_force_eV_per_A=10 ** rng.uniform(-1, 2, frames),
        train_features=rng.normal(size=(trained, 5)),
        deviation_eV_per_A=10 ** rng.uniform(-3, 1, frames),
        steps=rng.integers(-1, 100, frames),
        reasons=tuple("failed" if n % 4 == 0 else "sampled" for n in range(frames)),
        environments=tuple(frozenset({f"C{n % 7}", "H1C"}) for n in range(frames)),
        train_environments={"H1C": trained, "C0": min(1, trained)},
    )


def reorder(pool: Pool, order: np.ndarray) -> Pool:
    """The same pool, collected in another order."""
    return pool.part([int(i) for i in order])


def check_choice(choice: Choice, pool: Pool, budget: int) -> None:
    """What holds for every answer by itself."""
    picked = [pick.index for pick in choice.picks]
    frames = len(pool.uids)
    _law(len(picked) <= budget, f"{len(picked)} picks exceed the budget of {budget}")
    _law(len(set(picked)) == len(picked), "a frame is picked twice")
    _law(not set(picked) & set(choice.rejected), "a frame is both picked and rejected")
    accounted = set(picked) | set(choice.rejected)
    _law(accounted == set(range(frames)), "every frame is picked or rejected with a reason")
    _law(all(choice.rejected.values()), "a reason is empty")
    whys = {pick.why for pick in choice.picks}
    known = {"error", "coverage", "random"}
    _law(whys <= known, f"a pick is for 'error', 'coverage' or 'random', not {whys}")


def check_selector(make_selector: MakeSelector, *, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for frames, trained in ((40, 15), (7, 0), (1, 3), (0, 3)):
        pool = random_pool(rng, frames=frames, trained=trained)
        for budget in (0, 1, 2, 5, frames + 10):
            choice = _choose(make_selector, pool, budget)
            check_choice(choice, pool, budget)
            again = _choose(make_selector, pool, budget)
            _law(choice == again, "the same rng must give the same answer")
            order = rng.permutation(frames)
            moved = _choose(make_selector, reorder(pool, order), budget)
            check_choice(moved, reorder(pool, order), budget)
            here = {(pool.uids[pick.index], pick.why) for pick in choice.picks}
            there = {(pool.uids[order[pick.index]], pick.why) for pick in moved.picks}
            _law(here == there, "the order in which the pool was collected must not matter")
    _check_training_counts(make_selector, rng)


def _check_training_counts(make_selector: MakeSelector, rng: np.random.Generator) -> None:
    """The law that apax's max-dist breaks: what is trained on is not bought again."""
    pool = random_pool(rng)
    before = _choose(make_selector, pool, 10)
    worst = [pick.index for pick in before.picks if pick.why != "random"]
    for index in worst or [int(np.argmax(pool.expected_error_eV_per_A))]:
        trained = np.concatenate([pool.train_features, pool.features[index : index + 1]])
        known = replace(pool, train_features=trained)
        choice = _choose(make_selector, known, 10)
        check_choice(choice, known, 10)
        bought = {pick.index for pick in choice.picks if pick.why != "random"}
        _law(index not in bought, "a frame identical to a training frame was picked for its error")
    bare = replace(
        pool, deviation_eV_per_A=None, steps=None, reasons=(), environments=(), train_environments={}
    )
    check_choice(_choose(make_selector, bare, 10), bare, 10)


def _choose(make_selector: MakeSelector, pool: Pool, budget: int) -> Choice:
    return make_selector()(pool, budget, np.random.default_rng(7))


@dataclass
class ToyCommittee:
    """Members that pull every atom to its start with slightly different springs: a session factory.

    The spread grows with the distance from the start. Anything that walks will trip a threshold
    if it is low enough, and nothing explodes. Of a structure with another number of atoms, which an
    explorer made up, each atom is pulled to a place near where it is first seen. Where a cell changes,
    the springs' ends are strained with it, and its volume has a spring of its own, ½ B V₀ (V/V₀ − 1)².
    """

    homes: dict[int, np.ndarray]  # by number of atoms, which must differ between the starts
    stiffness_eV_per_A2: float = 2.0
    disagreement: float = 0.1  # relative, between the members' springs
    members: int = 4
    cells: dict[int, np.ndarray] = field(default_factory=dict)  # of the starts, likewise
    bulk_modulus_eV_per_A3: float = 0.5  # 80 GPa

    @classmethod
    def around(cls, starts: Sequence[Atoms]) -> ToyCommittee:
        homes = {len(atoms): atoms.positions.copy() for atoms in starts}
        if len(homes) < len(starts):
            raise PolicyError("the toy tells its starts by their number of atoms: let it differ")
        return cls(homes, cells={len(atoms): atoms.cell.array.copy() for atoms in starts})

    def __call__(self, frames: Sequence[Atoms]) -> Session:
        homes = [self.homes.get(len(atoms), _nearby(atoms)) for atoms in frames]
        return _ToySession(self, np.array([len(atoms) for atoms in frames]), homes)


def _nearby(atoms: Atoms) -> np.ndarray:
    """Half an Å away at most; where to depends on the place alone."""
    return np.asarray(atoms.positions + 0.5 * np.sin(3.0 * atoms.positions))


@dataclass(frozen=True)
class _ToySession:
    toy: ToyCommittee
    sizes: np.ndarray  # [S]
    ends: list[np.ndarray]  # of the springs, [A,3] of each frame

    def __call__(
        self,
        positions_A: np.ndarray,
        member_forces: bool,
        *,
        cells_A: np.ndarray | None = None,
        stress: bool = False,
    ) -> CommitteePrediction:
        toy, sizes = self.toy, self.sizes
        homes, energies, stresses = [], np.zeros(len(sizes)), np.zeros((len(sizes), 6))
        for n, size in enumerate(sizes):
            home = self.ends[n]
            if cells_A is not None:
                strain = np.linalg.solve(toy.cells[size], cells_A[n])
                home = home @ strain
                growth, volume = np.linalg.det(strain) - 1, abs(np.linalg.det(toy.cells[size]))
                energies[n] = 0.5 * toy.bulk_modulus_eV_per_A3 * volume * growth**2
                stresses[n, :3] = toy.bulk_modulus_eV_per_A3 * growth
            homes.append(home)
        away = positions_A - np.concatenate(homes)
        pull = -toy.stiffness_eV_per_A2 * away
        ends = np.cumsum(sizes)
        for n, (end, size) in enumerate(zip(ends, sizes, strict=True)):
            u = away[end - size : end]
            energies[n] += 0.5 * toy.stiffness_eV_per_A2 * (u**2).sum()
            if cells_A is not None:  # a spring is strained with all the rest
                virial = toy.stiffness_eV_per_A2 * (u.T @ u) / abs(np.linalg.det(cells_A[n]))
                stresses[n] += virial[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        factors = 1 + toy.disagreement * np.linspace(-1, 1, toy.members)
        return CommitteePrediction(
            n_atoms=sizes,
            energies=factors[:, None] * energies,
            mean_forces=pull,
            forces=factors[:, None, None] * pull if member_forces else None,
            stresses=(factors if member_forces else np.ones(1))[:, None, None] * stresses if stress else None,
        )


def check_explorer(make_explorer: MakeExplorer, *, starts: Sequence[Atoms] | None = None) -> None:
    """Runs the explorer on a toy committee; give `starts` of different sizes if need be."""
    if starts is None:
        water = Atoms("OH2", [[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], info={"charge": 0})
        copper = Atoms("Cu2", [[0, 0, 0], [1.8, 1.8, 0]], cell=[3.6, 3.6, 8.0], pbc=[1, 1, 0])
        starts = [water, copper]
    kept = [atoms.copy() for atoms in starts]
    found = _explore(make_explorer, starts)
    for before, after in zip(kept, starts, strict=True):
        unchanged = before == after and before.info == after.info
        _law(unchanged, "an explorer must leave its start structures as they are")
    _law(
        len({report.walker for report in found.walkers}) == len(found.walkers),
        "every walker reports once",
    )
    _law(found.force_calls >= 0, "force calls are counted")
    grows = getattr(make_explorer(), "grows", False)
    known = range(-1 if grows else 0, len(starts))
    _law(all(report.start_index in known for report in found.walkers), "a walker names its start")
    start_of = {report.walker: report.start_index for report in found.walkers}
    for candidate in found.candidates:
        _law(candidate.walker in start_of, "a candidate comes from a walker that reports")
        index, atoms = start_of[candidate.walker], candidate.atoms
        _law(
            bool(np.isfinite(atoms.positions).all()),
            "a candidate has a position that is not finite",
        )
        if index >= 0:
            _check_kept(atoms, starts[index], grows=grows)
        _law(bool(np.isfinite(atoms.cell.array).all()), "a candidate has a cell that is not finite")
        _law(
            atoms.calc is None and not atoms.constraints,
            "a candidate carries a calculator or a constraint",
        )
        _law(
            bool(candidate.reason) and bool(candidate.source), "a candidate names source and reason"
        )
    _law(
        _same(found, _explore(make_explorer, starts)), "the same rng must give the same exploration"
    )


def _check_kept(atoms: Atoms, start: Atoms, *, grows: bool) -> None:
    """An explorer whose class says `grows = True` may add atoms after those of its start."""
    kept = len(atoms) >= len(start) if grows else len(atoms) == len(start)
    kept = kept and bool((atoms.numbers[: len(start)] == start.numbers).all())
    _law(kept, "a candidate lost or swapped atoms")
    _law(bool((atoms.pbc == start.pbc).all()), "a candidate has other periodic boundaries")


def _explore(make_explorer: MakeExplorer, starts: Sequence[Atoms]) -> Exploration:
    factory = ToyCommittee.around(starts)
    return make_explorer()(starts, factory, Calibration.uncalibrated(), np.random.default_rng(3))


def _same(one: Exploration, other: Exploration) -> bool:
    facts = [[(c.walker, c.step, c.reason) for c in e.candidates] for e in (one, other)]
    if facts[0] != facts[1] or one.force_calls != other.force_calls:
        return False
    pairs = list(zip(one.candidates, other.candidates, strict=True))
    if any(a.atoms != b.atoms for a, b in pairs):  # also of numbers and cells
        return False
    return all(bool((a.atoms.positions == b.atoms.positions).all()) for a, b in pairs)


def example_history(rounds: int = 6) -> list[RoundFacts]:
    """A campaign that learns: the error halves in every round."""
    return [
        RoundFacts(
            round=n,
            target="pbe",
            labels={"gfn2": 100 * n, "pbe": 10 * n},
            fresh_force_rmse_eV_per_A=1.0 / 2**n,
            fresh_random_force_rmse_eV_per_A=0.8 / 2**n,
            fresh_frames=10,
            test_force_rmse_eV_per_A=None if n == 1 else 0.9 / 2**n,
            wall_s=60.0 * n,
            candidates=50,
            candidates_above_threshold=max(0, 40 - 8 * n),
            fresh_random_frames=5,
            fresh_element_rmse_eV_per_A={"H": 0.5 / 2**n, "O": 1.2 / 2**n},
            coverage_90=1 - 0.4 / 2**n,
            barrier_mae_eV=0.5 / 2**n,
            barriers=3,
            train_force_rmse_eV_per_A=0.3 / 2**n,
            labels_cpu_s=1000.0 * n,
        )
        for n in range(1, rounds + 1)
    ]


def check_stop_rule(make_rule: MakeStopRule) -> None:
    _law(make_rule()([]) is None, "without a round there is no reason to stop")
    history = example_history()
    unmeasured = replace(
        history[-1],
        fresh_force_rmse_eV_per_A=None,
        fresh_random_force_rmse_eV_per_A=None,
        test_force_rmse_eV_per_A=None,
        fresh_frames=0,
        fresh_random_frames=0,
        candidates=0,
        fresh_element_rmse_eV_per_A=None,
        coverage_90=None,
        barrier_mae_eV=None,
        barriers=0,
        train_force_rmse_eV_per_A=None,
        labels_cpu_s=None,
    )
    for rounds in [*(history[: n + 1] for n in range(len(history))), [*history[:-1], unmeasured]]:
        kept = list(rounds)
        rule = make_rule()
        reason = rule(rounds)
        _law(rounds == kept, "a stop rule must not change the history")
        _law(reason == rule(rounds) == make_rule()(rounds), "the same history, the same answer")
        if reason is not None:
            _law(bool(reason.rule and reason.message), "a reason names its rule and says why")
            _law(
                reason.exit_code in (0, 4, 5, 6),
                "exit codes: 0 done, 4 budget, 5 stalled, 6 model-limited",
            )


def example_levels() -> list[Level]:
    """Three levels, a hundredfold apart in cost; the middle one knows the target best."""
    return [
        Level("gfn2", 40, 200, 0.5, 0.9, pairs=30),
        Level("hf", 20, 60, 5.0, 0.98, pairs=30),
        Level("pbe", 10, 30, 50.0, 1.0, pairs=30),
    ]


def check_fidelity_choice(make_choice: MakeFidelityChoice, *, target: str = "pbe") -> None:
    """Budgets are kept, every level is named, nothing is negative, and nothing known is no excuse."""
    known = example_levels()
    unknown = [replace(one, cpu_s_per_label=None, correlation=None, pairs=0) for one in known]
    for levels in (known, known[-1:], unknown):
        for budget in (None, 0.0, 60.0, 1000.0):
            shares = make_choice()(levels, target=target, budget_cpu_s=budget)
            again = make_choice()(levels, target=target, budget_cpu_s=budget)
            _law(shares == again, "the same levels and budget, the same shares")
            _law(set(shares.labels) == {one.name for one in levels}, "every level has a share")
            _law(all(n >= 0 for n in shares.labels.values()), "shares are not negative")
            _law(bool(shares.note), "shares say why")
            if levels is not unknown:
                price = sum(shares.labels[one.name] * (one.cpu_s_per_label or 0) for one in levels)
                plan = sum(one.per_round * (one.cpu_s_per_label or 0) for one in levels)
                limit = plan if budget is None else budget
                _law(price <= limit * (1 + 1e-6), f"labels of {price} CPU s exceed {limit}")


def _law(holds: bool, law: str) -> None:
    if not holds:  # not an assert statement: python -O must not switch the laws off
        raise AssertionError(law)
