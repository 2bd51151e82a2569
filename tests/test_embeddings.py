"""What invariant inputs and an electric field add to a model.

Energies and tolerances are those of `embedding_helpers`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from embedding_helpers import TINY, batch_of, generator, geometry_of, sum_of_invariants, surroundings
from numpy.testing import assert_allclose
from torch import nn

from tace.batch import Batch
from tace.config import InputConfig
from tace.embeddings import FieldEmbedding, InvariantEmbedding, MagneticBasis
from tace.errors import DataError, TaceError
from tace.layers import gains

# ---- electric field ----


def field_embedding(**changes) -> FieldEmbedding:
    """With weights that are not all alike."""
    module = FieldEmbedding(dataclasses.replace(TINY, **changes), 0.5)
    with torch.no_grad():
        module.element.copy_(torch.tensor([1.0, 1.5, -0.7]))
        module.channel.copy_(torch.linspace(0.5, 2.0, len(module.channel)))
    return module


def test_field_is_added_by_element_and_channel_to_the_atoms_of_its_structure(structure):
    frames = [structure("water"), structure("crystal")]
    batch = batch_of(*frames)
    field = torch.tensor([[0.1, -0.2, 0.3], [1.0, 0.0, -1.0]], dtype=torch.float64)
    module = field_embedding()
    got = module(field, batch).detach().numpy()
    by_element, by_channel = module.element.detach(), module.channel.detach()
    for n in range(len(batch.species)):
        element, owner = float(by_element[batch.species[n]]), int(batch.structure[n])
        expected = np.outer(field[owner], by_channel) * element / 0.5
        assert_allclose(got[n], expected, rtol=1e-14)


def test_field_starts_with_equal_weights_and_reaches_all_channels_alike(structure):
    batch = batch_of(structure("water"))
    field = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    got = FieldEmbedding(TINY, 2.0)(field, batch).detach()
    assert_allclose(got, (field / 2.0)[:, :, None].expand(3, 3, 3), rtol=1e-15)


def test_no_field_adds_exactly_nothing(structure):
    batch = batch_of(structure("water"))
    assert (field_embedding()(torch.zeros(1, 3, dtype=torch.float64), batch) == 0).all()


def enthalpy(module: nn.Module, batch: Batch, positions: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    a = surroundings(TINY, batch, geometry_of(TINY, batch, positions))
    a[1] = a[1] + module(field, batch)
    return sum_of_invariants(a, batch)


@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
def test_polar_field_turns_with_the_structure(improper, structure, rotation):
    batch, module = batch_of(structure("ethanol")), field_embedding()
    matrix = torch.from_numpy(rotation(improper))
    field = torch.tensor([[0.3, -0.4, 0.5]], dtype=torch.float64)
    here = enthalpy(module, batch, batch.positions, field).item()
    there = enthalpy(module, batch, batch.positions @ matrix.T, field @ matrix.T).item()
    assert there == pytest.approx(here, rel=1e-12)
    assert abs(enthalpy(module, batch, batch.positions, -field).item() - here) > 1e-3  # there is a dipole


def test_enthalpy_can_be_differentiated_twice_with_respect_to_field_and_positions():
    batch = batch_of(Atoms("OH", positions=[[0, 0, 0], [0.9, 0.2, 0.1]]))
    module = field_embedding()
    leaves = [batch.positions.clone(), torch.tensor([[0.3, -0.4, 0.5]], dtype=torch.float64)]
    leaves = [x.requires_grad_() for x in leaves]

    def energy(positions, field):
        return enthalpy(module, batch, positions, field)

    assert torch.autograd.gradcheck(energy, leaves)
    assert torch.autograd.gradgradcheck(energy, leaves)


def test_a_field_needs_features_of_rank_one():
    with pytest.raises(TaceError, match="l_max"):
        field_embedding(l_max=0)


# ---- invariant inputs ----

CHARGE, SPIN = InputConfig("total_charge"), InputConfig("spin_multiplicity", values=(1, 3, 6))


HEAT, PARTIAL = InputConfig("electronic_temperature", scale=0.1), InputConfig("charges", scale=0.5)


def invariants(*inputs: InputConfig, **changes) -> InvariantEmbedding:
    config = dataclasses.replace(TINY, inputs=inputs, **changes)
    return InvariantEmbedding(config, generator()).double()


def embedded(module: InvariantEmbedding, inputs: tuple[InputConfig, ...], *conditions: dict) -> np.ndarray:
    """Rows of single oxygen atoms under conditions."""
    frames = []
    for condition in conditions:
        atoms = Atoms("O")
        for name, value in condition.items():
            place = atoms.arrays if name == "charges" else atoms.info
            place[name] = np.atleast_1d(value) if name == "charges" else value
        frames.append(atoms)
    return module(batch_of(*frames, inputs=inputs)).detach().numpy()


@pytest.mark.parametrize("config", [CHARGE, HEAT, PARTIAL], ids=lambda c: c.name)
def test_a_continuous_input_of_zero_adds_exactly_nothing(config):
    zero, one = embedded(invariants(config), (config,), {config.name: 0.0}, {config.name: 0.1})
    assert (zero == 0).all()
    assert np.abs(one).max() > 1e-3


def test_each_spin_multiplicity_has_its_own_row_of_the_table():
    module = invariants(SPIN)
    rows = embedded(module, (SPIN,), *({"spin_multiplicity": s} for s in (6, 1, 3, 1)))
    expected = (module.embed[0].table @ module.mix[0].weight).detach().numpy()
    assert_allclose(rows, expected[[2, 0, 1, 0]], rtol=1e-14)


def test_continuous_inputs_are_measured_in_their_scale():
    coarse = InputConfig("total_charge", scale=4.0)
    here = embedded(invariants(CHARGE), (CHARGE,), {"total_charge": 0.5})
    assert_allclose(embedded(invariants(coarse), (coarse,), {"total_charge": 2.0}), here, rtol=1e-14)


def test_charges_of_both_signs_and_sizes_are_embedded_independently():
    """With x alone as argument of SiLU, the odd part is linear and the last singular value is zero."""
    module = invariants(CHARGE, channels=32)
    rows = embedded(module, (CHARGE,), *({"total_charge": q} for q in (-2, -1, 1, 2)))
    values = np.linalg.svd(rows, compute_uv=False)
    assert values[3] > 0.01 * values[0]  # a learned map need not grow by more than a hundred


def test_two_electronic_temperatures_are_told_apart():
    module = invariants(HEAT, channels=32)
    rows = embedded(module, (HEAT,), {"electronic_temperature": 0.05}, {"electronic_temperature": 0.2})
    values = np.linalg.svd(rows, compute_uv=False)
    assert values[1] > 0.01 * values[0]  # as above


def test_inputs_of_structures_reach_their_atoms_and_inputs_of_atoms_theirs(structure):
    inputs = (CHARGE, PARTIAL)
    frames = [structure("water"), structure("ethanol")]
    for n, atoms in enumerate(frames):
        atoms.info["total_charge"] = 1.0 - 2 * n
        atoms.arrays["charges"] = np.linspace(-0.5, 0.4, len(atoms))
    module = invariants(*inputs)
    batch = batch_of(*frames, inputs=inputs)
    rows = module(batch).detach().numpy()[batch.original]
    singles = [
        {"total_charge": atoms.info["total_charge"], "charges": q}
        for atoms in frames
        for q in atoms.arrays["charges"]
    ]
    assert_allclose(rows, embedded(module, inputs, *singles), rtol=1e-12)


def test_sum_of_linear_maps_is_the_linear_map_of_the_concatenation():
    inputs = (CHARGE, SPIN)
    module = invariants(*inputs, fidelities=("a", "b"))
    batch = batch_of(Atoms("O", info={"total_charge": -1.0, "spin_multiplicity": 3}), inputs=inputs)
    parts = [embed(batch.inputs[name]) for name, embed in zip(module.names, module.embed, strict=True)]
    weight = torch.cat([mix.weight for mix in module.mix])
    assert_allclose(module(batch).detach(), (torch.cat(parts, 1) @ weight).detach(), rtol=1e-12)
    # the gain of one map from the concatenation of three, of which the model adds the fidelity's
    assert [mix.gain for mix in module.mix] == pytest.approx([1 / np.sqrt(3 * TINY.channels)] * 2)


def test_embedding_can_be_differentiated_twice_with_respect_to_the_charge():
    batch = batch_of(Atoms("O"), Atoms("OH", positions=[[0, 0, 0], [1, 0, 0]]), inputs=(CHARGE,))
    module = invariants(CHARGE)

    def embed(charge):
        return module(dataclasses.replace(batch, inputs={"total_charge": charge}))

    charge = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(embed, charge)
    assert torch.autograd.gradgradcheck(embed, charge)


def test_embedding_has_the_dtype_of_its_weights():
    batch = batch_of(Atoms("O", info={"total_charge": 1.0, "spin_multiplicity": 3}), inputs=(CHARGE, SPIN))
    assert invariants(CHARGE, SPIN).float()(batch).dtype == torch.float32


def test_graphs_made_without_a_condition_are_refused_by_its_name():
    with pytest.raises(DataError, match=r"'total_charge'.*config\.inputs"):
        invariants(CHARGE)(batch_of(Atoms("O")))


# ---- parameters ----


def test_every_parameter_declares_the_gain_it_was_drawn_with():
    changes = {"channels": 64, "n_radial": 8, "radial_hidden": (16,), "inputs": (CHARGE, SPIN, HEAT)}
    wide = dataclasses.replace(TINY, **changes)
    for module in (
        InvariantEmbedding(wide, generator()),
        FieldEmbedding(wide, 1.0),
        MagneticBasis(wide, 1.0, generator(), collinear=False),
        MagneticBasis(wide, 1.0, generator(), collinear=True),
    ):
        declared = gains(module)
        for name, parameter in module.named_parameters():
            owner = module.get_submodule(name.rpartition(".")[0])
            assert "gain" in vars(owner), f"{name} has the gain 1 by default only"
            # root mean square of at least 128 uniform numbers: 4 standard deviations are 0.16
            size = parameter.detach().square().mean().sqrt()
            assert float(size) == pytest.approx(declared[name], rel=0.16), name
