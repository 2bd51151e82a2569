"""Training on every quantity: the loss compares what it should, and its slopes reach every weight."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from model_helpers import build
from numpy.testing import assert_allclose
from test_tace_quantities import conditioned, lively

from tace.config import HeadConfig, InputConfig, LesConfig
from tace.data import Labelled, collate_samples, make_samples
from tace.errors import DataError, TaceError
from tace.hessian import hessian
from tace.loss import loss, nearest_image
from tace.model import Tace
from tace.reference import set_statistics, statistics
from tace.settings import TrainSettings
from tace.train import fit
from tace.validation import Plan, validation_errors

FIELD = {"inputs": (InputConfig("electric_field", scale=0.5),)}
CASES = {
    "dipole": FIELD,
    "polarization": FIELD,
    "polarizability": FIELD,
    "born_charges": FIELD,
    "born_charges of latent charges": {"les": LesConfig(smooth=True)},
    "magnetic_forces": {"inputs": (InputConfig("magnetic_moments"),)},
    "collinear_forces": {"inputs": (InputConfig("collinear_moments"),)},
    "hessian": {},
    "charges": {"heads": (HeadConfig("charges", scope="atom", charges="qeq"),)},
    "shielding": {"heads": (HeadConfig("shielding", scope="atom", symmetry="ij"),)},
    "elastic": {"heads": (HeadConfig("elastic", symmetry="ijkl=jikl=klij", reduce="mean"),)},
}


def labelled(case: str, structure, rng: np.random.Generator) -> tuple[str, list[Labelled]]:
    """Random labels of the right shape for a molecule and a crystal, and a frame without the label."""
    name = case.split()[0]
    frames = []
    for which in ("water", "crystal", "ethanol"):
        atoms = conditioned(structure(which))
        n = len(atoms)
        shapes = {
            "dipole": (3,), "polarization": (3,), "polarizability": (3, 3), "born_charges": (n, 3, 3),
            "magnetic_forces": (n, 3), "collinear_forces": (n,), "hessian": (3 * n, 3 * n),
            "charges": (n,), "shielding": (n, 3, 3), "elastic": (3, 3, 3, 3),
        }  # fmt: skip
        value = rng.normal(size=shapes[name])
        if name == "shielding":
            value[0] = np.nan  # an atom without label
        if name == "elastic":
            value = value + value.transpose(1, 0, 2, 3)
            value = value + value.transpose(0, 1, 3, 2)
            value = value + value.transpose(2, 3, 0, 1)
        skip = which == "ethanol" or (name == "polarization" and which == "water")  # no lattice
        frames.append(Labelled(atoms, "gfn2", float(rng.normal()), labels={} if skip else {name: value}))
    return name, frames


@pytest.mark.parametrize("case", CASES)
def test_the_slope_of_the_loss_reaches_the_weights(case, structure, rng):
    model = lively(build(**CASES[case]))
    name, frames = labelled(case, structure, rng)
    samples = make_samples(frames, model.config, labels=(name,))
    plan = Plan.of(model, samples)
    settings = TrainSettings(energy_weight=0.0, label_weights={name: 1.0})

    def value() -> torch.Tensor:
        rows = 2 if name == "hessian" else 0
        batch, targets = collate_samples(samples, 3, hessian_rows=rows, seed=3)
        return loss(plan.evaluate(model, batch, targets, create_graph=True), targets, settings)

    parameters = list(model.parameters())
    direction = [torch.from_numpy(rng.normal(size=tuple(p.shape))) for p in parameters]
    grads = torch.autograd.grad(value(), parameters, allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True) if g is not None)
    h, sides = 1e-5, []
    for sign in (1, -1, -1, 1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += sign * h * d
        sides.append(float(value().detach()))
    # O(h²) of the difference, relative to the curvature; 1e-16/h of round-off
    assert slope == pytest.approx((sides[0] - sides[2]) / (2 * h), rel=1e-4)
    assert slope != 0


@pytest.mark.parametrize("case", CASES)
def test_training_on_a_quantity_lowers_its_error(case, structure, rng):
    model = build(**CASES[case])
    name, frames = labelled(case, structure, rng)
    target = lively(Tace(model.config, seed=99, dtype=torch.float64))  # labels that such a model can give
    with torch.no_grad():
        for key, parameter in target.heads.named_parameters():
            parameter *= 30.0 if "offset" not in key and "hardness" not in key else 1.0
    frames = [f for f in frames if f.labels][:1]
    own = make_samples(frames, target.config, labels=(name,))
    if name == "hessian":
        frames = [dataclasses.replace(f, labels={name: hessian(target, f.atoms)}) for f in frames]
    else:
        batch, targets = collate_samples(own, 3)
        said = Plan.of(target, own).evaluate(target, batch, targets, create_graph=False).outputs[name]
        counts = batch.n_atoms.tolist()
        parts = torch.split(said, counts) if len(said) == sum(counts) else said.unbind(0)
        frames = [
            dataclasses.replace(f, labels={name: part.numpy()})
            for f, part in zip(frames, parts, strict=True)
        ]
    samples = make_samples(frames, model.config, labels=(name,))
    settings = TrainSettings(
        steps=60 if name == "hessian" else 30, batch_size=3, energy_weight=0.0,
        learning_rate=0.001 if name == "hessian" else 0.01, label_weights={name: 1.0},
        clip_norm=1e6,
    )  # fmt: skip
    before = validation_errors(model, samples, settings)["validation_loss"]
    fit(model, samples, samples, settings=settings)
    after = validation_errors(model, samples, settings)["validation_loss"]
    assert after < 0.8 * before


def test_a_polarization_is_compared_with_the_nearest_image(structure, rng):
    atoms = structure("crystal")
    cell = torch.tensor(np.array(atoms.cell))[None]
    difference = torch.from_numpy(rng.normal(size=(1, 3))) * 0.2
    for multiple in ([0, 0, 0], [1, 0, 0], [-3, 2, 5]):
        shifted = difference + torch.tensor(multiple, dtype=torch.float64) @ cell[0]
        # sums of lattice vectors of some 20 Å rounded at 1e-16
        assert_allclose(nearest_image(shifted, cell), difference, atol=1e-13)
    half = (0.5 * cell[0].sum(0))[None].requires_grad_(True)
    slope = torch.autograd.grad(nearest_image(half, cell).square().sum(), half)[0]
    assert torch.isfinite(slope).all()


def test_a_frame_without_the_label_does_not_pull_on_it(structure, rng):
    model = build(**CASES["charges"])
    name, frames = labelled("charges", structure, rng)
    settings = TrainSettings(energy_weight=0.0)
    values = []
    for chosen in (frames, frames[:2]):
        samples = make_samples(chosen, model.config, labels=(name,))
        batch, targets = collate_samples(samples, 3)
        result = Plan.of(model, samples).evaluate(model, batch, targets, create_graph=True)
        values.append(float(loss(result, targets, settings).detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_the_readout_of_one_fidelity_is_not_moved_by_another(structure):
    model = build(readout="per_fidelity", les=LesConfig())
    frames = [Labelled(structure("water"), "pbe", -2069.0, np.zeros((3, 3)))]
    samples = make_samples(frames, model.config)
    batch, targets = collate_samples(samples, 3)
    result = Plan.of(model, samples).evaluate(model, batch, targets, create_graph=True)
    loss(result, targets, TrainSettings()).backward()
    for readout in (model.energy_readout, model.charge_readout):
        for linear in readout.linear:
            columns = linear.weight.grad.abs().sum(0).view(2, -1)
            assert columns[0].sum() == 0
            assert columns[1].sum() > 0
        assert readout.hidden_out[0].weight.grad.abs().sum() == 0
        assert readout.hidden_out[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["mae", "huber", "l2"])
def test_other_losses_are_smaller_for_outliers_and_zero_for_the_truth(kind, structure):
    model = build()
    atoms = structure("water")
    sample = make_samples([Labelled(atoms, "gfn2", None, np.full((3, 3), 100.0))], model.config)
    batch, targets = collate_samples(sample, 3)
    result = Plan.of(model, sample).evaluate(model, batch, targets, create_graph=True)
    square = float(loss(result, targets, TrainSettings()).detach())
    settings = TrainSettings(loss_kinds={"forces": kind})
    value = loss(result, targets, settings)
    assert 0 < float(value.detach()) < square
    truth = dataclasses.replace(targets, forces=result.forces.detach())
    assert float(loss(result, truth, settings).detach()) < 1e-10


def test_statistics_leave_the_repulsion_out_of_the_energies():
    with_zbl, without = build(zbl=True), build()
    close = Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.6]])
    apart = Atoms("OH", positions=[[0, 0, 0], [0, 0, 2.5]])
    frames = [
        Labelled(a, level, -10.0 * len(a), np.zeros((len(a), 3))) for a in (close, apart)
        for level in ("gfn2", "pbe")
    ]  # fmt: skip
    e0 = {level: {1: 0.0, 6: 0.0, 8: 0.0} for level in ("gfn2", "pbe")}
    found = statistics(frames, with_zbl.config, e0).shift_eV_per_atom["gfn2"]
    plain = statistics(frames, without.config, e0).shift_eV_per_atom["gfn2"]
    assert plain == -10.0
    assert found < -10.5  # the repulsion of the close pair is not part of what is learned


def test_a_model_of_dipoles_needs_no_energies(structure, rng):
    model = build(heads=(HeadConfig("dipole", symmetry="i"),))
    frames = [
        Labelled(structure(n), level, labels={"dipole": rng.normal(size=3)})
        for n in ("water", "ethanol") for level in ("gfn2", "pbe")
    ]  # fmt: skip
    set_statistics(model, statistics(frames, model.config))
    samples = make_samples(frames, model.config, labels=("dipole",))
    plan = Plan.of(model, samples)
    assert not plan.forces
    assert not plan.stress
    found = validation_errors(model, samples, TrainSettings())
    assert set(found) == {"dipole_rmse", "dipole_mae", "validation_loss"}


def test_labels_of_heads_set_their_offsets(structure, rng):
    model = build(heads=(HeadConfig("polarizability", symmetry="ij=ji"),))
    per_element = {1: 0.3, 6: 1.1, 8: 0.8}
    frames = []
    for n in range(12):
        atoms = structure(("water", "ethanol", "crystal")[n % 3])
        alpha = np.eye(3) * sum(per_element[z] for z in atoms.numbers)
        frames.append(Labelled(atoms, "gfn2", 0.0, labels={"polarizability": alpha}))
    frames += [dataclasses.replace(f, fidelity="pbe") for f in frames]
    set_statistics(model, statistics(frames, model.config))
    with torch.no_grad():
        for p in model.heads.parameters():
            p.zero_()
    samples = make_samples(frames, model.config, labels=("polarizability",))
    found = validation_errors(model, samples, TrainSettings())
    assert found["polarizability_rmse"] < 1e-10


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"dipole": np.zeros(2)}, "ethanol: dipole has shape"),
        ({"dipole": np.full(3, np.inf)}, "ethanol: dipole is not finite"),
        ({"dipole": np.array([0.0, np.nan, 1.0])}, "ethanol: dipole is not finite"),
    ],
)
def test_a_label_that_cannot_be_used_is_named(labels, says, structure):
    model = build(heads=(HeadConfig("dipole", symmetry="i"),))
    with pytest.raises(DataError, match=says):
        make_samples(
            [Labelled(structure("ethanol"), "gfn2", name="ethanol", labels=labels)], model.config, ("dipole",)
        )


def test_a_quantity_that_the_model_lacks_is_refused(structure):
    with pytest.raises(TaceError, match="does not predict 'dipole'"):
        make_samples([Labelled(structure("water"), "gfn2", 0.0)], build().config, ("dipole",))


def test_a_stress_without_a_volume_is_refused():
    flat = Atoms("H", positions=[[0, 0, 0]], cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True)
    frame = Labelled(flat, "gfn2", 0.0, stress_eV_per_A3=np.zeros(6), name="flat")
    with pytest.raises(DataError, match=r"flat.*cell without volume"):
        make_samples([frame], build().config)
