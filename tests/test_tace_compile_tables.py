"""Radial tables stand for radial networks: how close, how smooth, in files, committees and training."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from model_helpers import NAMES, TINY, batch_of, build, evaluated
from numpy.testing import assert_allclose

from tace import radial_tables, spline
from tace.calculator import TaceCalculator
from tace.card import check, load_with_card, make_card
from tace.committee import Committee
from tace.compiling import compare_files, compile_file, examples, made_up
from tace.config import InputConfig
from tace.data import Labelled, make_samples
from tace.derivatives import evaluate
from tace.errors import ModelFileError, TaceError
from tace.io import load_model, model_document, model_from_document, save_model
from tace.model import Tace
from tace.radial_tables import drop_tables, has_tables, with_tables
from tace.settings import TrainSettings
from tace.train import Trainer

BOUND = 1e-5  # eV/Å, promised of forces


def tabulated(model, *frames):
    return with_tables(model, [batch_of(model, *frames)] if frames else [])[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"weights": "all"}, {"radial_orders": (0, 1, 2)}, {"zbl": True}, {"radial_hidden": ()}],
    ids=["default", "lower weights", "orders", "repulsion", "linear"],
)
def test_forces_and_stresses_are_those_of_the_network(changes, structure):
    model = build(**changes)
    made = tabulated(model, structure("ethanol"))
    for name in NAMES:
        with_network, with_table = (evaluated(m, structure(name), skin=0.5) for m in (model, made))
        assert float((with_network.forces - with_table.forces).abs().max()) < BOUND
        assert_allclose(with_network.energies, with_table.energies, atol=1e-7)  # splines err in step⁶
        assert_allclose(with_network.stresses, with_table.stresses, atol=1e-7)


def test_moments_of_atoms_have_radial_functions_of_their_own_and_they_are_tabulated(structure, rng):
    model = build(inputs=(InputConfig("magnetic_moments"),))
    atoms = structure("ethanol")
    atoms.arrays["magnetic_moments"] = 0.1 * rng.standard_normal((len(atoms), 3))
    made = tabulated(model, atoms)
    assert len(dict(radial_tables.networks(made))) > 2
    assert float((evaluated(model, atoms).forces - evaluated(made, atoms).forces).abs().max()) < BOUND


def test_a_spline_has_two_derivatives_and_they_are_right():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    grid = torch.tensor([0.5, 0.4], dtype=torch.float64)
    # none of them on a knot (0.5, 0.9, 1.3, ...), where the third derivative jumps and a difference
    # of first derivatives is off by the step times that jump
    x = torch.tensor([0.1, 0.55, 1.25, 2.05], dtype=torch.float64, requires_grad=True)

    def values(r):
        return spline.spline(r, table, grid)

    assert torch.autograd.gradcheck(values, x)
    assert torch.autograd.gradgradcheck(values, x)


def test_a_table_and_its_first_two_derivatives_are_continuous_and_zero_at_the_cutoff():
    made = tabulated(build())
    for _, network in radial_tables.networks(made):
        table, grid = network.table.values, network.table.grid
        knots = grid[0] + grid[1] * torch.arange(1, len(table), dtype=torch.float64)
        for order in (0, 1, 2):
            left, right = (
                spline.values(knots + side * 1e-9, table, grid, order) for side in (-1.0, 1.0)
            )
            # a knot apart by 2e-9 Å, the next derivative times that, and round-off of a curvature
            assert_allclose(left, right, atol=1e-5 * float(right.abs().max()))
            beyond = TINY.cutoff_A + torch.tensor([1e-9, 0.3], dtype=torch.float64)
            assert not spline.values(beyond, table, grid, order).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_spline_is_that_of_pytorch(dtype, monkeypatch):
    made = tabulated(build(dtype))
    network = next(n for _, n in radial_tables.networks(made))
    table, grid = network.table.values, network.table.grid
    x = torch.linspace(0.06, 4.0, 50, dtype=dtype)
    g = torch.ones(50, table.shape[2], dtype=dtype)
    # rounding of sums over six rows and all functions; a slope is a difference of values by the step
    size = float(table.abs().max() / grid[1]) * table.shape[2]
    compiled = spline.values(x, table, grid, 1), spline.dots(x, g, table, grid, 1)
    monkeypatch.setattr(spline, "can_run", lambda *_: False)
    plain = spline.values(x, table, grid, 1), spline.dots(x, g, table, grid, 1)
    for a, b in zip(compiled, plain, strict=True):
        assert_allclose(a, b, rtol=0, atol=10 * torch.finfo(dtype).eps * size)


def test_hessians_are_those_of_the_network(structure):
    model = build()
    made = tabulated(model, structure("water"))
    batch = batch_of(model, structure("water"))
    rows = torch.arange(3).unsqueeze(1)
    found = [evaluate(m, batch, hessian_rows=rows).outputs["hessian_rows"] for m in (model, made)]
    assert_allclose(found[1], found[0], atol=1e-5 * float(found[0].abs().max()))  # splines err in step⁴


def test_a_distance_that_is_not_a_number_gives_nothing_that_is_one(structure):
    made = tabulated(build())
    batch = batch_of(made, structure("water"))
    batch.positions[0, 0] = torch.nan
    assert evaluate(made, batch).energies.isnan().all()


def test_a_bound_that_no_grid_meets_is_an_error_and_nothing_is_written(tmp_path, monkeypatch):
    save_model(tmp_path / "model.pt", build(torch.float32))
    monkeypatch.setattr(radial_tables, "SLOPE_BOUND", 0.0)
    monkeypatch.setattr(radial_tables, "INTERVALS", (8, 16))
    with pytest.raises(TaceError, match=r"no table is close enough.*use the model as it is"):
        compile_file(tmp_path / "model.pt", tmp_path / "fast.pt", graph=False)
    assert not (tmp_path / "fast.pt").exists()


def test_the_grid_is_refined_until_forces_on_structures_are_close_too(structure, monkeypatch):
    model = build()
    batch = batch_of(model, structure("ethanol"))
    monkeypatch.setattr(radial_tables, "VALUE_BOUND", 1.0)
    monkeypatch.setattr(radial_tables, "SLOPE_BOUND", 1.0)
    loose = with_tables(model, [batch])[1]
    monkeypatch.setattr(radial_tables, "FORCE_BOUND", 0.01 * loose.force_error_eV_per_A)
    tight = with_tables(model, [batch])[1]
    assert tight.intervals > loose.intervals
    assert tight.force_error_eV_per_A <= 0.01 * loose.force_error_eV_per_A


# ------------------------------------------------------------------ files
@pytest.fixture
def files(tmp_path, structure):
    """A model with a card, and the same compiled."""
    model = build(torch.float32).requires_grad_(False)
    example = Labelled(structure("water"), "gfn2", 0.0, np.zeros((3, 3)))
    save_model(tmp_path / "model.pt", model, {"card": make_card(model, example=example), "calibration": 2.0})
    report = compile_file(tmp_path / "model.pt", tmp_path / "fast.pt", graph=False)
    return tmp_path / "model.pt", tmp_path / "fast.pt", report


def test_a_compiled_file_is_used_like_any_other(files, structure):
    model, fast, _ = files
    atoms = structure("crystal")
    results = []
    for path in (model, fast):
        atoms.calc = TaceCalculator(path)
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for a, b in zip(*results, strict=True):
        assert_allclose(b, a, atol=2e-4)  # float32
    assert has_tables(load_model(fast)) and not has_tables(load_model(model))


def test_a_compiled_file_says_what_it_is_keeps_the_card_and_passes_its_self_test(files):
    model, fast, report = files
    loaded, card = load_with_card(fast)
    assert card["radial_tables"] == report["tables"] and load_with_card(model)[1]["radial_tables"] is None
    assert card["date"] == load_with_card(model)[1]["date"]
    assert check(loaded, card, where="fast")["passed"]
    assert report["tables"]["force_error_eV_per_A"] <= BOUND
    # two that are made up at both levels, and that of the card
    assert report["tables"]["structures"] == 5


def test_a_compiled_file_is_compared_with_its_model_and_found_out_if_it_is_of_another(files, tmp_path):
    model, fast, _ = files
    found = compare_files(model, fast)
    assert found["passed"] and found["forces_off_eV_per_A"] <= found["forces_tolerance_eV_per_A"]
    other = build(torch.float32)
    with torch.no_grad():
        other.embedding *= 1.001
    save_model(tmp_path / "other.pt", other)
    assert not compare_files(tmp_path / "other.pt", fast)["passed"]
    save_model(tmp_path / "smaller.pt", build(torch.float32, channels=2))
    with pytest.raises(TaceError, match="was not compiled from"):
        compare_files(tmp_path / "smaller.pt", fast)


def test_a_file_is_not_compiled_twice(files, tmp_path):
    with pytest.raises(TaceError, match="compile the file that it was made from"):
        compile_file(files[1], tmp_path / "faster.pt")


def test_a_file_without_tables_can_be_read_by_an_older_version():
    model = build()
    assert model_document(model)["version"] == 3
    assert model_document(tabulated(model))["version"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_A": [0.1]}, "not numbers"),
        ({"values": {}}, "missing"),
        ({"grid_A": "x"}, "cannot be read"),
    ],
)
def test_damaged_tables_are_refused(change, message):
    document = model_document(tabulated(build()))
    document["radial_tables"] = {**document["radial_tables"], **change}
    with pytest.raises(ModelFileError, match=message):
        model_from_document(document)


def test_tables_survive_a_change_of_precision_and_back():
    made = tabulated(build())
    other = copy.deepcopy(made).float().double()
    for (_, a), (_, b) in zip(radial_tables.networks(made), radial_tables.networks(other), strict=True):
        assert torch.equal(a.table.values, b.table.values)
    assert next(radial_tables.networks(copy.deepcopy(made).float()))[1].table.values.dtype == torch.float32


def test_members_of_a_committee_have_tables_all_or_none(structure):
    model = build()
    made = tabulated(model)
    with pytest.raises(TaceError, match="only some members have radial tables"):
        Committee([model, made])
    both = Committee([made, tabulated(build(channels=4))])([structure("ethanol")])
    plain = Committee([model, build(channels=4)])([structure("ethanol")])
    assert_allclose(both.forces, plain.forces, atol=BOUND)


def test_training_goes_on_with_the_networks(structure):
    model = tabulated(build(torch.float32))
    frames = [Labelled(structure("water"), "gfn2", 0.0, np.zeros((3, 3)))]
    trainer = Trainer(model, make_samples(frames, model.config), [], TrainSettings(steps=2))
    before = [p.detach().clone() for _, n in radial_tables.networks(model) for p in n.parameters()]
    trainer.one_step()
    after = [p for _, n in radial_tables.networks(model) for p in n.parameters()]
    assert not has_tables(model)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    drop_tables(model)


# ------------------------------------------------------------------ structures to compare on
def test_made_up_structures_hold_all_elements_and_no_atoms_on_top_of_each_other():
    for elements in [(1,), (1, 8), tuple(range(1, 31))]:
        for atoms in made_up(elements):
            assert len(atoms) >= 9 and set(atoms.numbers) <= set(elements)
            assert len(set(atoms.numbers)) == min(len(elements), 24)
            distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
            assert distances[np.triu_indices(len(atoms), 1)].min() > 0.4  # ¾ of two hydrogen radii
    assert all(a == b for a, b in zip(made_up((1, 8)), made_up((1, 8)), strict=True))


def test_a_model_of_conditions_needs_structures_that_have_them():
    config = dataclasses.replace(TINY, inputs=(InputConfig("magnetic_moments"),))
    model = Tace(config)
    with pytest.raises(TaceError, match="give some with --structures"):
        examples(model, {}, [], where="model.pt")
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]])
    atoms.arrays["magnetic_moments"] = np.ones((2, 3))
    assert len(examples(model, {}, [atoms], where="model.pt")) == 1
