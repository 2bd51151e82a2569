"""What atoms contribute to the polarisability of a model that reads an electric field."""

from __future__ import annotations

import numpy as np
import torch
from model_helpers import batch_of, build
from numpy.testing import assert_allclose

from tace.config import InputConfig
from tace.data import Labelled
from tace.derivatives import evaluate
from tace.finetune import extend_fidelities
from tace.io import load_model, model_document, write_archive
from tace.reference import set_statistics, statistics

FIELD = (InputConfig("electric_field"),)
ALPHA = {1: 0.05, 6: 0.12, 8: 0.09}  # e·Å²/V


def silent(model):
    """The same model with readouts that say nothing: the constants are left."""
    with torch.no_grad():
        for p in model.energy_readout.parameters():
            p.zero_()
    return model


def fitted(structure):
    model = build(inputs=FIELD)
    frames = []
    for name in ("water", "ethanol", "crystal"):
        atoms = structure(name)
        alpha = np.eye(3) * sum(ALPHA[z] for z in atoms.numbers)
        frames += [
            Labelled(atoms, level, -1.0, labels={"polarizability": factor * alpha})
            for level, factor in (("gfn2", 1.0), ("pbe", 2.0))
        ]
    set_statistics(model, statistics(frames, model.config))
    return model


def test_it_is_the_least_squares_fit_of_the_isotropic_labels(structure):
    model = silent(fitted(structure))
    for fidelity, factor in ((0, 1.0), (1, 2.0)):
        batch = batch_of(model, structure("ethanol"), fidelity=fidelity)
        found = evaluate(model, batch, responses=("polarizability",)).outputs["polarizability"]
        total = factor * sum(ALPHA[z] for z in structure("ethanol").numbers)
        # the labels are exactly such sums; what is left is round-off of the fit
        assert_allclose(found[0].detach(), total * np.eye(3), rtol=0, atol=1e-10)


def test_the_energy_of_an_atom_falls_with_the_square_of_the_field(structure):
    model = silent(fitted(structure))
    energies = []
    for field in (0.0, 0.1, 0.3):
        atoms = structure("atom")
        atoms.info["electric_field"] = np.array([0.0, 0.6 * field, 0.8 * field])
        energies.append(float(evaluate(model, batch_of(model, atoms)).energies))
    alpha = ALPHA[int(structure("atom").numbers[0])]
    fallen = np.array(energies[1:]) - energies[0]
    assert_allclose(fallen, [-0.5 * alpha * 0.01, -0.5 * alpha * 0.09], rtol=0, atol=1e-9)


def test_models_of_the_second_format_have_none(tmp_path, structure):
    model = build(inputs=FIELD)
    document = model_document(model)
    state = {k: v for k, v in document["state"].items() if k != "reference.polarizability"}
    write_archive(tmp_path / "old.pt", document | {"version": 2, "state": state})
    again = load_model(tmp_path / "old.pt")
    assert not again.reference.get_buffer("polarizability").any()
    atoms = structure("water")
    assert torch.equal(*(evaluate(m, batch_of(m, atoms)).energies for m in (model, again)))


def test_a_new_level_starts_from_that_of_the_level_it_copies(structure):
    model = extend_fidelities(fitted(structure), ["ccsd"])
    table = model.reference.get_buffer("polarizability")
    assert table.shape == (3, 3)
    assert torch.equal(table[2], table[1])
