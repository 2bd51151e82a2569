"""All members in one pass say what they say one by one, whatever their options and what lies in memory."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from model_helpers import NAMES, TINY, batch_of, louder
from numpy.testing import assert_allclose

import tace.committee
from tace.batch import copies
from tace.committee import Committee
from tace.config import HeadConfig, InputConfig, LesConfig
from tace.derivatives import evaluate
from tace.finetune import new_readouts
from tace.model import Tace
from tace.radial_tables import networks, with_tables
from tace.readout import ENERGY_READOUTS
from tace.stacked import can_stack, shares_trunk, stack

STACKABLE = {
    "plain": {},
    "les": {"les": LesConfig()},
    "les of several charges": {"les": LesConfig(n_charges=2, constraint="neutral")},
    "many readouts": {"readout": "per_fidelity"},
    "one level": {"fidelities": ("pbe",)},
    "residual": {"residual": True, "n_layers": 3},
    "one layer": {"n_layers": 1},
    "repulsion": {"zbl": True},
    "scalars": {"L_max": 0},
    "a condition": {"inputs": (InputConfig("total_charge"),)},
    "a head": {"heads": (HeadConfig("dipole", symmetry="i"),)},
    "heads of charges and dipoles of every level": {
        "heads": (
            HeadConfig("charges", scope="atom", charges="qeq", hidden=4),
            HeadConfig("dipole", symmetry="i"),
        ),
        "readout": "per_fidelity",
    },
    "a gate with own weights": {"gate": "norm"},
    "a gate of scalars": {"gate": "scalar"},
    "lower weights": {"weights": "all"},
    "uncoupled mixing": {"mixing": "uncoupled"},
    "a condition from a table": {"inputs": (InputConfig("spin_multiplicity", values=(0, 1)),)},
    "a field": {"inputs": (InputConfig("electric_field"),)},
    "moments": {"inputs": (InputConfig("magnetic_moments"),)},
}


def members(number: int = 3, **changes: object) -> list[Tace]:
    """Models of one configuration, trained on different structures: sizes, references and all differ."""
    made = []
    for k in range(number):
        config = dataclasses.replace(TINY, avg_neighbors=6.0 + k, **changes)
        model = louder(Tace(config, seed=k, dtype=torch.float64))
        names = config.fidelities
        e0 = {n: {z: -10.0 * z - k for z in config.elements} for n in names}
        model.set_reference(
            e0,
            {n: 0.8 + 0.5 * j + 0.1 * k for j, n in enumerate(names)},
            dict.fromkeys(names, -0.3 * k),
        )
        made.append(model.requires_grad_(False))
    return made


def frames_of(structure, config):
    """Molecules, crystals and slabs; no wires, which latent charges refuse."""
    frames = [structure(name) for name in NAMES if name != "wire"]
    for number, atoms in enumerate(frames):
        for condition in config.inputs:
            if condition.name == "magnetic_moments":
                # small: large ones give forces whose rounding is large too
                moments = np.random.default_rng(number).normal(scale=0.1, size=(len(atoms), 3))
                atoms.set_initial_magnetic_moments(moments)
                continue
            is_field = condition.name == "electric_field"
            atoms.info[condition.name] = [0.0, 0.1, 0.01 * number] if is_field else number % 2
    return frames


def one_by_one(models, batch):
    said = [evaluate(m, batch, stress=True) for m in models]
    return {
        "energies": np.stack([s.energies.detach().numpy() for s in said]),
        "forces": np.stack([s.forces.numpy() for s in said]),
        "stresses": np.stack([s.stresses.numpy() for s in said]),
        "features": said[0].features.detach().numpy(),
    }


def agree(prediction, expected):
    # float64: sums of hundreds of terms in another order
    assert_allclose(prediction.energies, expected["energies"], rtol=1e-12, atol=1e-10)
    assert_allclose(prediction.forces, expected["forces"], rtol=0, atol=1e-10)
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    assert_allclose(prediction.stresses, expected["stresses"][..., rows, columns], rtol=0, atol=1e-11)
    assert_allclose(prediction.features, expected["features"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize("name", STACKABLE)
def test_members_in_one_pass_are_the_members_one_by_one(name, native, structure, monkeypatch):
    models = members(**STACKABLE[name])
    if native == "0":
        monkeypatch.setattr("tace.edge_sum.compiled", lambda: None)
        monkeypatch.setattr("tace.product.compiled", lambda: None)
    assert can_stack(models)
    level = len(models[0].config.fidelities) - 1
    batch = batch_of(models[0], *frames_of(structure, models[0].config), fidelity=level)
    said = Committee(models).evaluate_batch(batch, member_forces=True, stress=True, features=True)
    agree(said, one_by_one(models, batch))


class Offset(torch.nn.Module):
    """A part that knows nothing of members."""

    def __init__(self, readout: torch.nn.Module, by: float):
        super().__init__()
        self.readout, self.by = readout, torch.nn.Parameter(torch.tensor(by, dtype=torch.float64))

    def forward(self, scalars, batch):
        return self.readout(scalars, batch) + self.by


def test_what_cannot_be_stacked_is_evaluated_one_by_one_and_right(structure):
    models = members()
    for k, model in enumerate(models):
        model.energy_readout = Offset(model.energy_readout, 0.1 * k)
    assert not can_stack(models)
    batch = batch_of(models[0], structure("ethanol"))
    said = Committee(models).evaluate_batch(batch, member_forces=True, stress=True, features=True)
    agree(said, one_by_one(models, batch))


def test_radial_tables_of_every_member_are_read_in_one_pass(structure, monkeypatch):
    models = members(les=LesConfig())
    batch = batch_of(models[0], structure("ethanol"), structure("crystal"))
    tabled = []
    for k, model in enumerate(models):
        monkeypatch.setattr("tace.radial_tables.INTERVALS", (256 << k,))  # the grids differ too
        tabled.append(with_tables(model, [])[0].requires_grad_(False))
    lengths = {len(n.table.values) for m in tabled for _, n in networks(m)}
    assert len(lengths) == len(tabled)
    assert can_stack(tabled)
    said = Committee(tabled).evaluate_batch(batch, member_forces=True, stress=True, features=True)
    agree(said, one_by_one(tabled, batch))
    assert not can_stack([tabled[0], models[1]])


def test_members_of_different_shape_are_not_stacked():
    assert not can_stack([*members(1), *members(1, channels=4)])


def test_many_atoms_are_evaluated_one_by_one_with_the_same_result(structure, monkeypatch):
    committee = Committee(members())
    batch = batch_of(committee.members[0], *(structure(n) for n in NAMES))
    asked = {"member_forces": True, "stress": True, "features": True}
    few = committee.evaluate_batch(batch, **asked)
    monkeypatch.setattr(tace.committee, "MAX_STACKED_ATOMS", len(committee.members) * len(batch.species) - 1)
    monkeypatch.setattr(committee, "_stacked", None)
    many = committee.evaluate_batch(batch, **asked)
    for name in ("energies", "forces", "stresses", "features", "mean_forces"):
        assert_allclose(getattr(many, name), getattr(few, name), rtol=1e-12, atol=1e-10)


def test_mean_forces_alone_are_the_mean_of_the_members_forces(structure):
    committee = Committee(members())
    batch = batch_of(committee.members[0], structure("ethanol"), structure("crystal"))
    both = committee.evaluate_batch(batch, member_forces=True, stress=True)
    mean = committee.evaluate_batch(batch, member_forces=False, stress=True)
    assert mean.forces is None
    assert_allclose(mean.mean_forces, both.mean_forces, rtol=0, atol=1e-14)
    assert_allclose(mean.mean_stresses, both.mean_stresses, rtol=0, atol=1e-14)


def test_what_lies_in_memory_never_reaches_a_result(structure):
    """Fresh memory is filled with NaN: rows that nothing reads may hold it, what is read may not."""
    models = members(les=LesConfig())
    batch = batch_of(models[0], structure("ethanol"), structure("atom"), structure("slab"))
    expected = one_by_one(models, batch)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.isnan(torch.empty(3)).all()
        said = Committee(models).evaluate_batch(batch, member_forces=True, stress=True, features=True)
    finally:
        torch.use_deterministic_algorithms(False)
    agree(said, expected)


def test_atoms_without_neighbours_keep_the_energy_of_their_member(structure):
    models = members(les=LesConfig())
    said = Committee(models)([structure("atom")])
    assert_allclose(said.energies[:, 0], [m.e0_eV[-1, 2] for m in models], rtol=0, atol=1e-12)
    assert (said.forces == 0).all()


def test_a_session_moves_the_copies_with_their_atoms(structure):
    committee = Committee(members(les=LesConfig()))
    frames = [structure("crystal"), structure("ethanol")]
    session = committee.session(frames)
    rng = np.random.default_rng(0)
    for _ in range(3):
        for atoms in frames:
            atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
        moved = session(np.concatenate([a.positions for a in frames]))
        fresh = committee(frames)
        assert_allclose(moved.energies, fresh.energies, rtol=1e-12, atol=1e-10)
        assert_allclose(moved.forces, fresh.forces, rtol=0, atol=1e-10)
    assert session.rebuilds == 1


def test_copies_are_graphs_of_their_own(structure):
    model = members(1)[0]
    batch = batch_of(model, structure("ethanol"), structure("slab"), structure("atom"))
    three = evaluate(stack([model] * 3), copies(batch, 3), stress=True)
    one = evaluate(model, batch, stress=True)
    assert_allclose(three.energies.view(3, -1), one.energies.expand(3, -1), rtol=1e-13, atol=1e-11)
    assert_allclose(three.forces.view(3, -1, 3), one.forces.expand(3, -1, 3), rtol=0, atol=1e-11)


def one_trunk(**changes: object) -> list[Tace]:
    """Members that differ in their readouts alone."""
    first, *others = members(4, **changes)
    made = [first]
    for other in others:
        model = copy.deepcopy(first)
        new_readouts(model, seed=int(1e3 * float(other.embedding.abs().sum())))
        made.append(louder(model))
    return made


@pytest.mark.parametrize("changes", [{}, {"les": LesConfig()}, {"readout": "per_fidelity", "zbl": True}])
@pytest.mark.parametrize("member_forces", [True, False])
def test_a_shared_trunk_is_passed_once_and_says_what_its_members_say(
    changes, member_forces, structure, monkeypatch
):
    models = one_trunk(**changes)
    assert shares_trunk(models)
    batch = batch_of(models[0], *frames_of(structure, models[0].config), fidelity=1)
    expected = one_by_one(models, batch)
    assert len({float(e[0]) for e in expected["energies"]}) == len(models)  # they do differ
    committee = Committee(models)
    monkeypatch.setattr(tace.committee, "MAX_STACKED_TRUNK_ATOMS", 0)
    passes = []
    describe = Tace.describe
    monkeypatch.setattr(Tace, "describe", lambda *a: passes.append(len(a[1].species)) or describe(*a))
    said = committee.evaluate_batch(batch, member_forces=member_forces, stress=True, features=True)
    assert passes == [len(batch.species)]
    if member_forces:
        agree(said, expected)
        return
    assert_allclose(said.energies, expected["energies"], rtol=1e-12, atol=1e-10)
    assert_allclose(said.mean_forces, expected["forces"].mean(0), rtol=0, atol=1e-10)
    assert_allclose(said.features, expected["features"], rtol=0, atol=1e-11)
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    assert_allclose(
        said.mean_stresses, expected["stresses"].mean(0)[:, rows, columns], rtol=0, atol=1e-11
    )


def test_one_weight_of_a_layer_is_enough_to_make_another_trunk():
    models = one_trunk()
    with torch.no_grad():
        models[2].layers[0].out[0].weight[0, 0] += 1e-9
    assert not shares_trunk(models)
    assert can_stack(models)


def test_new_readouts_are_all_that_is_trained():
    model = members(1, les=LesConfig())[0]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    new_readouts(model, seed=5)
    for name, parameter in model.named_parameters():
        readout = name.startswith(ENERGY_READOUTS)
        assert parameter.requires_grad == readout
        assert torch.equal(parameter, before[name]) != readout
