"""The model against its full-Cartesian twin, and the laws of nature it must obey."""

from __future__ import annotations

import dataclasses
import itertools

import cartesian_twin
import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose
from slopes import slope_and_difference

from tace import testing
from tace.batch import collate, make_graph
from tace.config import PRESETS, TaceConfig, preset
from tace.derivatives import evaluate, make_leaves, strained_geometry, voigt
from tace.errors import TaceError
from tace.initial import READOUT_START
from tace.layers import gains
from tace.model import Tace, n_parameters

CUTOFF = 3.4
TINY = TaceConfig(
    elements=(1, 6, 8),
    fidelities=("gfn2", "pbe"),
    cutoff_A=CUTOFF,
    channels=3,
    l_max=2,
    L_max=1,
    radial_hidden=(8, 8),
    readout_hidden=4,
    avg_neighbors=8.0,
)
NAMES = ("water", "ethanol", "crystal", "carbon", "slab", "wire", "atom")


def louder(model: Tace) -> Tace:
    """Readouts start small; here their forces are not tiny, or a mistake would hide in round-off."""
    with torch.no_grad():
        for parameter in model.energy_readout.parameters():
            parameter *= 30.0
    return model


def build(dtype: torch.dtype = torch.float64, **changes: object) -> Tace:
    """A random model with references that are neither zero nor one."""
    model = Tace(dataclasses.replace(TINY, **changes), seed=7, dtype=dtype)
    e0 = {"gfn2": {1: -10.7, 6: -48.8, 8: -110.2}, "pbe": {1: -13.6, 6: -1029.2, 8: -2041.9}}
    louder(model)
    names = model.config.fidelities
    e0 = {name: {z: e0[name][z] for z in model.config.elements} for name in names}
    model.set_reference(
        e0, {n: 0.8 + 0.5 * k for k, n in enumerate(names)}, dict.fromkeys(names, -0.3)
    )
    return model


def batch_of(model: Tace, *frames: Atoms, fidelity: int = 0, skin: float = 0.0):
    cutoff = model.config.cutoff_A + skin
    graphs = [
        make_graph(
            a, model.config.elements, cutoff=cutoff, fidelity=fidelity, inputs=model.config.inputs
        )
        for a in frames
    ]
    return collate(graphs, len(model.config.elements))


def evaluated(
    model: Tace, *frames: Atoms, fidelity: int = 0, skin: float = 0.0, responses: tuple[str, ...] = ()
):
    batch = batch_of(model, *frames, fidelity=fidelity, skin=skin)
    return evaluate(model, batch, stress=True, responses=responses)


# ---- the compact form is the Cartesian model ----

ARCHITECTURES = [
    (n_layers, l_max, rank, order, paths)
    for n_layers, l_max, order in itertools.product((1, 2), (2, 3), (1, 2, 3))
    for rank in ((0, 1, 2) if n_layers > 1 else (0,))
    for paths in (("minimal", "official") if order > 1 else ("minimal",))
]


@pytest.mark.parametrize(("n_layers", "l_max", "rank", "order", "paths"), ARCHITECTURES)
def test_model_is_its_full_cartesian_twin(n_layers, l_max, rank, order, paths, structure):
    model = build(n_layers=n_layers, l_max=l_max, L_max=rank, correlation=order, paths=paths)
    frames = [structure("water"), structure("crystal")]
    got = evaluated(model, *frames, fidelity=1)
    at = 0
    for n, atoms in enumerate(frames):
        energy, forces, stress = cartesian_twin.evaluate(model, atoms, fidelity=1)
        assert np.abs(forces).max() > 1e-3, "the test would pass for a model that says nothing"
        # float64 round-off of energies near 2000 eV, and of sums of some 1e4 terms in the forces
        assert_allclose(float(got.energies[n]), energy, rtol=0, atol=1e-10)
        assert_allclose(got.forces[at : at + len(atoms)], forces, rtol=0, atol=1e-10)
        if stress is not None:
            assert_allclose(got.stresses[n], stress, rtol=0, atol=1e-10)
        at += len(atoms)


@pytest.mark.parametrize("fidelity", [0, 1])
@pytest.mark.parametrize("norm", ["cartesian", "unit"])
@pytest.mark.parametrize("name", ["ethanol", "slab", "wire", "carbon", "atom"])
def test_model_is_its_twin_at_every_fidelity_and_periodicity(name, norm, fidelity, structure):
    model, atoms = build(coupling_norm=norm, l_max=3, L_max=2), structure(name)
    energy, forces, stress = cartesian_twin.evaluate(model, atoms, fidelity)
    got = evaluated(model, atoms, fidelity=fidelity)
    scale = 1.0 + np.abs(forces).max()  # 'unit' couplings of random weights can give large forces
    assert_allclose(float(got.energies[0]), energy, rtol=0, atol=1e-10 * scale)
    assert_allclose(got.forces, forces, rtol=0, atol=1e-10 * scale)
    if stress is None:
        assert torch.isnan(got.stresses).all()
    else:
        assert_allclose(got.stresses[0], stress, rtol=0, atol=1e-10 * scale)


def test_model_with_one_fidelity_and_one_element_is_its_twin(structure):
    model = Tace(dataclasses.replace(TINY, elements=(6,), fidelities=("pbe",)), dtype=torch.float64)
    energy, forces, _ = cartesian_twin.evaluate(model, structure("carbon"))
    got = evaluated(model, structure("carbon"))
    assert_allclose(float(got.energies[0]), energy, rtol=0, atol=1e-10)  # as above
    assert_allclose(got.forces, forces, rtol=0, atol=1e-10)


# ---- the invariants of tace.testing ----


@pytest.mark.parametrize(
    ("changes", "fidelity"),
    [({}, 0), ({"n_layers": 1}, 1), ({"l_max": 3, "L_max": 2, "n_layers": 3}, 1)],
)
def test_model_obeys_every_law_in_float64(changes, fidelity, structure):
    potential = testing.from_model(build(**changes), fidelity=fidelity)
    testing.check_potential(potential, [structure(n) for n in NAMES], cutoff_A=CUTOFF)


def test_model_obeys_every_law_in_float32(structure):
    potential = testing.from_model(build(torch.float32))
    frames = [structure(n) for n in NAMES]
    testing.check_potential(potential, frames, cutoff_A=CUTOFF, tolerance=testing.FLOAT32)


def test_float32_is_float64_to_rounding(structure):
    frames = [structure(n) for n in NAMES]
    single, double = evaluated(build(torch.float32), *frames), evaluated(build(), *frames)
    # 6e-8 per operation, through a chain of some ten sums and products
    assert_allclose(single.energies, double.energies, rtol=0, atol=2e-5)
    assert_allclose(single.forces, double.forces, rtol=0, atol=2e-5 * double.forces.abs().max())
    assert single.energies.dtype == single.forces.dtype == torch.float64


def test_float32_does_not_lose_precision_far_from_the_origin(structure):
    model, here = build(torch.float32), structure("ethanol")
    there = structure("ethanol")
    there.positions += 1e5  # a float32 position would be rounded to 8e-3 Å here
    near, far = evaluated(model, here), evaluated(model, there)
    assert_allclose(far.forces, near.forces, atol=1e-5)  # float32 rounding of forces of order one


class Broken:
    """A sound potential, spoiled in one way."""

    def __init__(self, how: str) -> None:
        self.how, self.sound = how, testing.from_model(build())

    def __call__(self, structures):
        answers = []
        for place, (atoms, answer) in enumerate(
            zip(structures, self.sound(structures), strict=True)
        ):
            e, f, s = answer
            x = atoms.positions
            if self.how == "field":
                e, f = e + x[:, 0].sum(), f - np.array([1.0, 0.0, 0.0])
            elif self.how == "sign of forces":
                f = -f
            elif self.how == "sign of stress" and s is not None:
                s = -s
            elif self.how == "anisotropy":
                e = e + (f[:, 0] ** 2).sum()
            elif self.how == "order of atoms":
                e = e + f[0, 0] ** 2 + f[0, 1] ** 2 + f[0, 2] ** 2
            elif self.how == "company":
                e = e + 1e-6 * place
            elif self.how == "extensivity":
                e = e + 1e-4 * len(atoms) ** 2
            elif self.how == "wrapping" and atoms.pbc.any():
                e = e + np.ptp(x, axis=0).sum()
            answers.append(testing.Answer(e, f, s))
        return answers


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("field", ("water",)),
        ("sign of forces", ("water",)),
        ("sign of stress", ("crystal",)),
        ("anisotropy", ("water",)),
        ("order of atoms", ("water",)),
        ("company", ("water", "atom")),
        ("extensivity", ("crystal",)),
        ("extensivity", ("water",)),
        ("wrapping", ("crystal",)),
    ],
)
def test_checks_notice_a_broken_potential(how, names, structure):
    with pytest.raises(AssertionError):
        testing.check_potential(Broken(how), [structure(n) for n in names], cutoff_A=CUTOFF)


def test_checks_accept_an_ase_calculator():
    from ase.build import bulk
    from ase.calculators.emt import EMT

    copper = bulk("Cu") * (1, 1, 2)
    copper.rattle(0.05, seed=0)
    rng = np.random.default_rng(0)
    potential = testing.from_calculator(EMT())
    # EMT shifts its neighbour lists by round-off: energies of copper to 1e-9 eV
    tolerance = dataclasses.replace(testing.FLOAT64, absolute=1e-8, slope=1e-5)
    testing.check_rotation(potential, copper, rng, tolerance)
    testing.check_supercell(potential, copper, tolerance)


# ---- what happens at the cutoff, and without neighbours ----


def crossing(distance: float) -> Atoms:
    """A carbon that is near an oxygen, and at `distance` from a hydrogen."""
    return Atoms("HCO", positions=[[0, 0, 0], [distance, 0.0, 0.0], [distance - 1.0, 1.0, 0.2]])


def along_x(model: Tace, distance: float) -> tuple[float, float]:
    answer = evaluated(model, crossing(distance))
    return float(answer.energies[0]), float(answer.forces[1:, 0].sum())


def test_energy_and_force_are_continuous_when_an_atom_crosses_the_cutoff():
    model = build(l_max=3, L_max=2)
    inside, outside = along_x(model, CUTOFF - 1e-7), along_x(model, CUTOFF + 1e-7)
    # in 2e-7 Å, forces below 10 eV/Å and curvatures below 100 eV/Å² change them by less than this
    assert abs(inside[0] - outside[0]) < 2e-6
    assert abs(inside[1] - outside[1]) < 2e-5
    # not even the number of edges is the same: the check is not empty
    edges = [len(batch_of(model, crossing(CUTOFF + d)).pair_i) for d in (-1e-7, 1e-7)]
    assert edges[0] > edges[1]


def test_second_derivative_is_continuous_at_the_cutoff():
    model = build(l_max=3, L_max=2, n_radial=4)

    def jump(h: float) -> float:
        below, here, above = (along_x(model, CUTOFF + d)[1] for d in (-h, 0.0, h))
        return abs((above - here) / h - (here - below) / h)

    coarse, fine = jump(1e-3), jump(1e-4)
    assert coarse < 1.0
    assert fine < 0.2 * coarse + 1e-9  # falls as h: the second derivative has no step


def test_the_energy_vanishes_at_the_cutoff_with_its_slope_and_curvature():
    model = build(fidelities=("pbe",))
    e0 = float(evaluated(model, Atoms("HC", positions=[[0, 0, 0], [9, 0, 0]])).energies[0])
    excess, force = [], []
    for gap in (0.02, 0.01):
        answer = evaluated(model, Atoms("HC", positions=[[0, 0, 0], [CUTOFF - gap, 0, 0]]))
        excess.append(float(answer.energies[0]) - e0)
        force.append(float(answer.forces[1, 0]))
    # gap³ and gap² laws, with 10 % for the next order and, below 1e-10, for round-off of E0
    assert excess[0] / excess[1] == pytest.approx(8.0, rel=0.1)
    assert force[0] / force[1] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("fidelity", [0, 1])
def test_a_free_atom_has_its_reference_energy_exactly(fidelity):
    model = build()
    for z, number in enumerate(model.config.elements):
        free = Atoms([number], positions=[[1.0, 2.0, 3.0]])
        boxed = Atoms([number], positions=[[1.0, 2.0, 3.0]], cell=[9.0, 9.0, 9.0], pbc=True)
        answer = evaluated(model, free, boxed, fidelity=fidelity)
        assert answer.energies.tolist() == [float(model.e0_eV[fidelity, z])] * 2
        assert (answer.forces == 0).all()
        assert (answer.stresses[1] == 0).all()
        assert torch.isnan(answer.stresses[0]).all()


def test_a_free_atom_has_no_force_when_the_weights_are_frozen_for_inference():
    model = build().requires_grad_(False)
    answer = evaluated(model, Atoms("O", positions=[[0, 0, 0]], cell=[9, 9, 9], pbc=True))
    assert (answer.forces == 0).all()
    assert (answer.stresses == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dissociated_dimer_has_exactly_twice_the_reference_energy(dtype):
    model = build(dtype)
    dimer = Atoms("O2", positions=[[0, 0, 0], [CUTOFF + 1e-6, 0, 0]])
    assert float(evaluated(model, dimer).energies[0]) == 2 * float(model.e0_eV[0, 2])


def test_one_bond_is_enough_to_feel_a_force():
    answer = evaluated(build(), Atoms("HO", positions=[[0, 0, 0], [1.0, 0, 0]]))
    assert float(answer.forces[0].norm()) > 1e-3
    assert_allclose(answer.forces.sum(0), 0.0, atol=1e-12)  # float64 round-off


def test_neighbours_beyond_the_cutoff_change_nothing(structure):
    model = build()
    frames = [structure(n) for n in NAMES]
    plain, skinned = evaluated(model, *frames), evaluated(model, *frames, skin=1.5)
    # other summation orders only
    assert_allclose(skinned.energies, plain.energies, rtol=1e-14)
    assert_allclose(skinned.forces, plain.forces, atol=1e-12)
    assert_allclose(skinned.features, plain.features, atol=1e-12)


def test_parts_without_neighbours_contribute_no_gradient_to_weights():
    model = build()
    batch = batch_of(model, Atoms("C", positions=[[0, 0, 0]]), Atoms("H", positions=[[0, 0, 0]]))
    result = evaluate(model, batch, create_graph=True)
    grads = torch.autograd.grad(result.energies.sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or (g == 0).all() for g in grads)


# ---- per-atom results, fidelities, derivatives of derivatives ----


def test_energies_of_atoms_add_up_and_come_in_the_order_of_the_input(structure):
    model = build()
    frames = [structure(n) for n in NAMES]
    answer = evaluated(model, *frames, responses=("atomic_energies",))
    sizes = [len(a) for a in frames]
    parts = answer.outputs["atomic_energies"].split(sizes)
    # the same numbers in another order
    assert_allclose(torch.stack([part.sum() for part in parts]), answer.energies, rtol=1e-14)
    for atoms, part in zip(frames, parts, strict=True):
        backwards = evaluated(model, atoms[::-1], responses=("atomic_energies",))
        assert_allclose(backwards.outputs["atomic_energies"].flip(0), part, rtol=1e-12)
    assert answer.features.shape == (sum(sizes), TINY.n_layers * TINY.channels)


def test_features_do_not_turn_with_the_structure(structure, rotation):
    model = build()
    for name, improper in itertools.product(NAMES, (False, True)):
        atoms, turned, q = structure(name), structure(name), rotation(improper)
        turned.set_cell(turned.cell[:] @ q.T)
        turned.positions = turned.positions @ q.T
        here, there = evaluated(model, atoms).features, evaluated(model, turned).features
        assert_allclose(there, here, atol=1e-11)  # float64 round-off


def test_switching_the_fidelity_switches_reference_scale_shift_and_embedding(structure):
    model, atoms = build(), structure("ethanol")
    low, high = (evaluated(model, atoms, fidelity=f) for f in (0, 1))
    assert float((low.energies - high.energies).abs()) > 100.0  # E0 differs by thousands of eV
    assert float((low.forces - high.forces).abs().max()) > 1e-3
    assert float((low.features - high.features).abs().max()) > 1e-3


def test_energy_is_reference_plus_scaled_readout_plus_shift(structure):
    model, atoms = build(), structure("ethanol")
    numbers = atoms.get_atomic_numbers().tolist()

    def energy(e0: float, scale: float, shift: float) -> float:
        flat = {name: dict.fromkeys(model.config.elements, e0) for name in model.config.fidelities}
        names = model.config.fidelities
        model.set_reference(flat, dict.fromkeys(names, scale), dict.fromkeys(names, shift))
        return float(evaluated(model, atoms).energies[0])

    readout = energy(0.0, 1.0, 0.0)
    assert energy(-5.0, 1.0, 0.0) == pytest.approx(readout - 5.0 * len(numbers), rel=1e-13)
    assert energy(0.0, 2.5, 0.0) == pytest.approx(2.5 * readout, rel=1e-13)
    full = energy(0.0, 0.0, 1.0)
    # every atom of ethanol has a neighbour nearer than half the cutoff: the shift is all but on
    assert (1 - np.exp(-3.0)) * len(numbers) < full <= len(numbers)
    assert energy(-5.0, 2.5, 0.2) == pytest.approx(
        2.5 * readout - 5.0 * len(numbers) + 0.2 * full, rel=1e-13
    )


def test_a_change_of_one_fidelity_leaves_the_other_alone(structure):
    model, atoms = build(), structure("water")
    before = evaluated(model, atoms, fidelity=0)
    with torch.no_grad():
        model.fidelity_table[1] += 0.5
        model.e0_eV[1] += 1.0
        model.scale_eV[1] *= 2.0
    after = evaluated(model, atoms, fidelity=0)
    assert torch.equal(before.energies, after.energies)
    assert torch.equal(before.forces, after.forces)


def test_fidelities_mix_in_one_batch(structure):
    model, atoms = build(), structure("water")
    graphs = [make_graph(atoms, TINY.elements, cutoff=CUTOFF, fidelity=f) for f in (1, 0, 1)]
    mixed = evaluate(model, collate(graphs, 3)).energies
    alone = [float(evaluated(model, atoms, fidelity=f).energies[0]) for f in (1, 0, 1)]
    assert_allclose(mixed, alone, rtol=1e-14)  # other summation orders only


@pytest.mark.parametrize("stress", [False, True])
def test_gradient_of_a_force_and_stress_loss_is_its_slope(stress, structure):
    model = build(l_max=3, L_max=2)
    batch = batch_of(model, *(structure(n) for n in NAMES if n != "ethanol"))

    def loss() -> torch.Tensor:
        r = evaluate(model, batch, stress=stress, create_graph=True)
        total = (r.forces**2).sum() + (r.energies / batch.n_atoms).square().sum() * 1e-6
        return total + (r.stresses[batch.periodic] ** 2).sum() if stress else total

    slope, difference = slope_and_difference(loss, model.parameters())
    # O(h²) of the difference and 1e-16/h of round-off, relative to losses of order one
    assert slope == pytest.approx(difference, rel=2e-5)


def test_no_graph_is_kept_unless_asked_for(structure):
    model = build()
    result = evaluated(model, structure("crystal"))
    tensors = [t for t in result if isinstance(t, torch.Tensor)]
    assert not any(t.requires_grad for t in (*tensors, *result.outputs.values()))
    energies = evaluate(model, batch_of(model, structure("water")), forces=False)
    assert energies.forces is None
    assert energies.stresses is None


def test_geometry_can_be_shared_by_several_models(structure):
    first, second = build(), build()
    with torch.no_grad():
        second.embedding *= 1.5
    batch = batch_of(first, structure("crystal"))
    shared, _ = strained_geometry(first, batch, make_leaves(batch, stress=False))
    for model in (first, second):
        assert_allclose(
            model(batch, shared).energies.detach(), evaluate(model, batch).energies, rtol=1e-14
        )


def test_voigt_order_is_xx_yy_zz_yz_xz_xy():
    m = torch.tensor([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    assert voigt(m).tolist() == [1, 2, 3, 4, 5, 6]


def test_compression_has_negative_stress_as_in_ase(structure):
    """ASE's sign: stress = +dE/dε/V; a crystal that wants to expand has a negative trace."""
    atoms, model = structure("carbon"), build()
    stress = evaluated(model, atoms).stresses[0]
    larger = atoms.copy()
    larger.set_cell(atoms.cell[:] * 1.0001, scale_atoms=True)
    rises = float(evaluated(model, larger).energies[0] - evaluated(model, atoms).energies[0]) > 0
    assert (float(stress.trace()) > 0) == rises


# ---- parameters and settings ----


def test_weights_do_not_depend_on_the_dtype_and_do_on_the_seed():
    double, single = Tace(TINY, seed=1, dtype=torch.float64), Tace(TINY, seed=1)
    for a, b in zip(double.parameters(), single.parameters(), strict=True):
        assert torch.equal(a.float(), b)
    assert not torch.equal(Tace(TINY, seed=2).embedding, single.embedding)


def test_every_parameter_is_drawn_at_the_scale_of_its_gain():
    model = Tace(preset("nano", elements=(1, 6, 8), fidelities=("a", "b"), avg_neighbors=10.0))
    table = gains(model)
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= table[name] * 3**0.5 * (1 + 1e-6)
        if parameter.numel() > 500:  # then the sample deviation scatters by some 2 %
            assert float(parameter.detach().std()) == pytest.approx(table[name], rel=0.1), name


def test_the_gain_of_each_parameter_is_that_of_its_initialisation():
    model, wide = Tace(TINY, seed=0), Tace(dataclasses.replace(TINY, channels=12), seed=0)
    for name in ("embedding", "fidelity_table", "layers.0.mix.0.weight", "energy_readout.linear.0.weight"):
        for m in (model, wide):
            largest = float(m.get_parameter(name).detach().abs().max())
            start = READOUT_START if "readout" in name else 1.0
            bound = gains(m)[name] * 3**0.5 * start
            assert 0.3 * bound < largest <= bound * (1 + 1e-6), name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds_and_survives_json(name, structure):
    config = preset(name, elements=(1, 6, 8), cutoff_A=CUTOFF, avg_neighbors=10.0)
    assert TaceConfig.from_json(config.to_json()) == config
    model = Tace(config)
    assert n_parameters(model) > 1000
    assert torch.isfinite(evaluated(model, structure("water")).energies).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"elements": (8, 1)},
        {"fidelities": ()},
        {"L_max": 3},
        {"correlation": 5},
        {"paths": "some"},
        {"avg_neighbors": 0.0},
    ],
)
def test_impossible_settings_are_refused_by_name(changes):
    with pytest.raises(TaceError, match=next(iter(changes))):
        dataclasses.replace(TINY, **changes)


def test_unknown_settings_and_presets_come_with_a_suggestion():
    with pytest.raises(TaceError, match="did you mean 'correlation'"):
        TaceConfig.from_json({"elements": [1], "corelation": 3})
    with pytest.raises(TaceError, match="did you mean 'small'"):
        preset("smal", elements=(1,))
