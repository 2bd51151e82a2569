"""Every quantity that a model predicts: invariances, and derivatives against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from model_helpers import CUTOFF, batch_of, build
from numpy.testing import assert_allclose

from tace import testing
from tace.committee import Committee
from tace.config import HeadConfig, InputConfig, LesConfig
from tace.derivatives import evaluate
from tace.errors import DataError, TaceError
from tace.hessian import hessian
from tace.responses import available, label_shape
from tace.testing import difference_slope

H = 1e-3  # step of five-point differences: errors H⁴ ~ 1e-12 times derivatives, and 1e-13/H of round-off
VARIANTS = {
    "les": {"les": LesConfig()},
    "les, smooth, two channels, neutral": {
        "les": LesConfig(dl_A=1.6, smooth=True, n_charges=2, constraint="neutral")
    },
    "les, dispersion": {"les": LesConfig(form="dispersion")},
    "zbl": {"zbl": True},
    "bessel orders": {"radial_orders": (0, 1, 3)},
    "heads of every fidelity": {"readout": "per_fidelity"},
    "gate": {"gate": "norm"},
    "tmp": {"correlation": 1, "n_layers": 3, "gate": "scalar", "residual": True},
    "uncoupled": {"mixing": "uncoupled"},
    "all weights": {"weights": "all"},
    "field": {"inputs": (InputConfig("electric_field"),)},
    "moments": {"inputs": (InputConfig("magnetic_moments"),)},
    "collinear moments": {"inputs": (InputConfig("collinear_moments"),)},
    "temperature and multiplicity": {
        "inputs": (
            InputConfig("electronic_temperature", scale=0.5),
            InputConfig("spin_multiplicity", values=(1, 2, 3)),
        )
    },
    "everything": {
        "les": LesConfig(smooth=True),
        "zbl": True,
        "inputs": (
            InputConfig("electric_field", scale=0.3),
            InputConfig("magnetic_moments", scale=2.0),
            InputConfig("charges"),
        ),
        "heads": (
            HeadConfig("charges", scope="atom", charges="qeq"),
            HeadConfig("nmr", scope="atom", symmetry="ij"),
        ),
    },
}


def lively(model):
    """Latent charges of a few tenths e: with the small initial ones a mistake would hide in round-off."""
    if model.charge_readout is not None:
        with torch.no_grad():
            for parameter in model.charge_readout.parameters():
                parameter *= 8.0
    return model


def conditioned(atoms: Atoms, seed: int = 0) -> Atoms:
    """The structure with a value for every condition."""
    rng = np.random.default_rng([seed, len(atoms)])
    atoms = atoms.copy()
    atoms.info |= {
        "electric_field": rng.normal(size=3) * 0.2,
        "electronic_temperature": 0.3,
        "spin_multiplicity": 2,
        "total_charge": 0.0,
    }
    atoms.arrays["magnetic_moments"] = rng.normal(size=(len(atoms), 3))
    atoms.arrays["collinear_moments"] = rng.normal(size=len(atoms))
    atoms.arrays["charges"] = rng.normal(size=len(atoms)) * 0.3
    return atoms


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_potential(name, structure):
    model = lively(build(**VARIANTS[name]))
    long_range = model.config.les is not None
    testing.check_potential(
        testing.from_model(model),
        [conditioned(structure(n)) for n in ("water", "crystal", "carbon", "atom")],
        cutoff_A=CUTOFF,
        long_range=long_range or bool(model.config.input_names),  # separate groups share a field
    )
    testing.check_potential(
        testing.from_model(model),
        [conditioned(structure("slab"))],
        cutoff_A=CUTOFF,
        # vacuum between the images of a slab leaves 1e-7 of their interaction
        tolerance=testing.Tolerance(1e-7, 1e-9, H) if long_range else testing.FLOAT64,
        long_range=True,
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_an_atom_alone_has_the_energy_of_an_atom_alone(name, structure):
    model = lively(build(**VARIANTS[name]))
    atoms = conditioned(structure("atom"))
    atoms.info["electric_field"] = np.zeros(3)
    atoms.arrays["charges"][:] = 0.0
    assert evaluate(model, batch_of(model, atoms)).energies.tolist() == [-110.2]


@pytest.mark.parametrize("name", ["les", "everything"])
@pytest.mark.parametrize("member_forces", [True, False])
def test_a_committee_says_what_its_members_say(name, member_forces, structure):
    models = [lively(build(**VARIANTS[name])) for _ in range(2)]
    with torch.no_grad():
        models[1].embedding *= 1.3
    frames = [conditioned(structure(n)) for n in ("water", "crystal", "slab")]
    said = Committee(models)(frames, fidelity="gfn2", member_forces=member_forces, stress=True)
    alone = [evaluate(m, batch_of(m, *frames), stress=True) for m in models]
    # the same sums, geometry cut in the middle
    for k, one in enumerate(alone):
        assert_allclose(said.energies[k], one.energies, rtol=1e-13)
        if said.forces is not None:
            assert_allclose(said.forces[k], one.forces, atol=1e-12)
    assert_allclose(said.mean_forces, sum(one.forces for one in alone) / 2, atol=1e-12)


# ---- responses to a field ----


def field_model():
    return lively(
        build(inputs=(InputConfig("electric_field", scale=0.5),), les=LesConfig(smooth=True), L_max=2)
    )


def asked(model, atoms, *names, forces=True):
    result = evaluate(model, batch_of(model, atoms), forces=forces, responses=names)
    return result, {n: result.outputs[n].numpy() for n in names}


def with_field(atoms: Atoms, change: np.ndarray) -> Atoms:
    atoms = atoms.copy()
    atoms.info["electric_field"] = np.asarray(atoms.info["electric_field"]) + change
    return atoms


@pytest.mark.parametrize("name", ["water", "crystal"])
@pytest.mark.parametrize("at_zero", [True, False])
def test_responses_to_a_field_are_derivatives(name, at_zero, structure):
    model, atoms = field_model(), conditioned(structure(name))
    if at_zero:
        atoms.info["electric_field"] = np.zeros(3)
    _, found = asked(model, atoms, "polarization", "polarizability", "born_charges")
    for a, e in enumerate(np.eye(3)):

        def there(s, e=e):
            result, own = asked(model, with_field(atoms, s * e), "polarization")
            flat = (result.energies.numpy(), own["polarization"][0], result.forces.numpy().ravel())
            return np.concatenate(flat)

        slope = difference_slope(there, H)
        assert_allclose(found["polarization"][0, a], -slope[0], atol=1e-7)
        assert_allclose(found["polarizability"][0, :, a], slope[1:4], atol=1e-7)
        # Z*_ab = ∂F_b/∂𝓔_a
        assert_allclose(found["born_charges"][:, a, :].ravel(), slope[4:], atol=1e-7)
    assert_allclose(found["born_charges"].sum(0), np.zeros((3, 3)), atol=1e-11)  # no net charge moves
    assert_allclose(found["polarizability"][0], found["polarizability"][0].T, atol=1e-12)

    def moved(s):
        there = atoms.copy()
        there.positions[1, 2] += s
        return asked(model, there, "polarization")[1]["polarization"][0]

    assert_allclose(found["born_charges"][1, :, 2], difference_slope(moved, H), atol=1e-7)


def test_the_dipole_of_a_molecule_is_its_polarization(structure):
    _, found = asked(field_model(), conditioned(structure("ethanol")), "dipole", "polarization")
    assert np.abs(found["dipole"]).max() > 1e-4
    assert (found["dipole"] == found["polarization"]).all()


# ---- moments ----


@pytest.mark.parametrize("name", ["magnetic", "collinear"])
def test_magnetic_forces_are_slopes(name, structure):
    source = f"{name}_moments"
    model = build(inputs=(InputConfig(source),))
    atoms = conditioned(structure("crystal"))
    _, found = asked(model, atoms, f"{name}_forces")
    direction = np.random.default_rng(5).normal(size=atoms.arrays[source].shape)

    def energy(s):
        moved = atoms.copy()
        moved.arrays[source] = atoms.arrays[source] + s * direction
        return float(evaluate(model, batch_of(model, moved)).energies)

    work = -(found[f"{name}_forces"] * direction).sum()
    assert abs(work) > 1e-5
    assert work == pytest.approx(difference_slope(energy, H), abs=1e-7)


@pytest.mark.parametrize("name", ["magnetic_moments", "collinear_moments"])
def test_time_reversal_keeps_the_energy_and_turning_one_moment_does_not(name, structure):
    model, atoms = build(inputs=(InputConfig(name),)), conditioned(structure("crystal"))

    def energy(moments):
        moved = atoms.copy()
        moved.arrays[name] = moments
        return float(evaluate(model, batch_of(model, moved)).energies)

    m = atoms.arrays[name]
    one = m.copy()
    one[0] *= -1
    assert energy(-m) == pytest.approx(energy(m), rel=1e-14)
    assert abs(energy(one) - energy(m)) > 1e-4


# ---- shares of atoms, second derivatives ----


@pytest.mark.parametrize("variant", ["les", "everything", "les, dispersion"])
@pytest.mark.parametrize("name", ["water", "crystal", "carbon"])
def test_shares_of_atoms_add_up(variant, name, structure):
    model, atoms = lively(build(**VARIANTS[variant])), conditioned(structure(name))
    result = evaluate(
        model, batch_of(model, atoms), stress=True, responses=("atomic_energies", "atomic_virials")
    )
    assert_allclose(result.outputs["atomic_energies"].sum(), result.energies[0], rtol=1e-13)
    strain = np.random.default_rng(1).normal(size=(3, 3)) / 3
    strain = strain + strain.T

    def energy(s):
        moved = atoms.copy()
        moved.set_cell(atoms.cell[:] @ (np.eye(3) + s * strain), scale_atoms=False)
        moved.positions = atoms.positions @ (np.eye(3) + s * strain)
        return float(evaluate(model, batch_of(model, moved)).energies)

    virial = result.outputs["atomic_virials"].sum(0).numpy()
    # at H the sphere of wave vectors may change for the sharp cut: 1e-5 of the charges squared
    work = difference_slope(energy, H)
    assert -(virial * strain).sum() == pytest.approx(work, abs=2e-6)
    if atoms.pbc.all():
        assert_allclose(virial, -atoms.get_volume() * result.stresses[0], atol=1e-10)


@pytest.mark.parametrize("variant", ["les", "zbl"])
@pytest.mark.parametrize("name", ["water", "crystal"])
def test_the_hessian_is_the_slope_of_the_forces(variant, name, structure):
    model, atoms = lively(build(**VARIANTS[variant])), structure(name)
    matrix = hessian(model, atoms)
    n = 3 * len(atoms)
    columns = []
    for k in range(n):

        def force(s, k=k):
            moved = atoms.copy()
            moved.positions[k // 3, k % 3] += s
            return evaluate(model, batch_of(model, moved)).forces.numpy().ravel()

        columns.append(-difference_slope(force, H))
    assert_allclose(matrix, np.array(columns), atol=2e-6)
    assert_allclose(matrix.reshape(n, -1, 3).sum(1), np.zeros((n, 3)), atol=1e-10)  # translation


# ---- what is available, and what is refused ----


def test_what_is_available_follows_from_the_configuration():
    bare = build().config
    assert "dipole" not in available(bare)
    with pytest.raises(TaceError, match="add 'electric_field' to its inputs, or a head named 'dipole'"):
        label_shape("dipole", bare)
    headed = build(heads=(HeadConfig("dipole", symmetry="i"),)).config
    assert label_shape("dipole", headed) == ("structure", (3,))
    assert "born_charges" in available(build(les=LesConfig()).config)


def test_a_missing_condition_is_named(structure):
    model = build(inputs=(InputConfig("electronic_temperature"),))
    with pytest.raises(DataError, match=r"set atoms.info\['electronic_temperature'\] in eV"):
        batch_of(model, structure("water"))


def test_a_class_that_was_not_trained_on_is_refused(structure):
    model = build(inputs=(InputConfig("spin_multiplicity", values=(1, 3)),))
    atoms = structure("water")
    atoms.info["spin_multiplicity"] = 2
    with pytest.raises(DataError, match="2 was not trained on; known: 1, 3"):
        batch_of(model, atoms)


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_jumps_when_an_atom_crosses_the_cutoff(name, structure):
    """Energy and forces just inside and outside; the long range is smooth there by itself."""
    model = lively(build(**VARIANTS[name]))
    step = 1e-4
    answers = []
    for side in (-1.0, 1.0):
        atoms = conditioned(structure("water"))
        atoms += Atoms("H", positions=[atoms.positions[0] + [CUTOFF + side * step, 0, 0]])
        answers.append(evaluate(model, batch_of(model, conditioned(atoms, seed=1))))
    inside, outside = answers
    slope = float(outside.forces.abs().max()) + 1.0
    # the envelope vanishes as (1 − u)³: 1e-13 of it is left; what moves otherwise moves by step · slope
    assert abs(float(inside.energies - outside.energies)) < 4 * step * slope
    assert float((inside.forces - outside.forces).abs().max()) < 60 * step * slope
