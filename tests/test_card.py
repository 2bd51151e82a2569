"""The card of a model, its self-test, comparisons with labels, and divergences told from a history."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose
from tace_runs import frames

from tace.calculator import TaceCalculator
from tace.card import check, example_of, load_with_card, make_card, read_card, self_test
from tace.committee import Committee
from tace.comparison import compare, error_rows, errors, shared
from tace.config import HeadConfig, InputConfig, preset
from tace.data import Labelled
from tace.divergence import MAE, RMSE, advice, carriers, diagnose, story
from tace.errors import ModelFileError, TaceError
from tace.io import save_model
from tace.model import Tace
from tace.properties import predict

CONFIG = preset(
    "nano",
    elements=(6, 8),
    cutoff_A=3.0,
    channels=4,
    l_max=1,
    L_max=1,
    radial_hidden=(8,),
    avg_neighbors=3.0,
    fidelities=("cheap", "dear"),
)


def model(*, seed: int = 0, dtype: torch.dtype = torch.float64, config=CONFIG) -> Tace:
    made = Tace(config, seed=seed, dtype=dtype)
    table = {f: {z: -10.0 * z - n for z in config.elements} for n, f in enumerate(config.fidelities)}
    made.set_reference(table, dict.fromkeys(config.fidelities, 1.5), dict.fromkeys(config.fidelities, -0.3))
    return made.eval().requires_grad_(False)


def labelled(count: int = 4, level: str = "cheap", seed: int = 0) -> list[Labelled]:
    return [
        Labelled(a, level, float(a.info["REF_energy"]), a.arrays["REF_forces"], name=f"{level} {n}")
        for n, a in enumerate(frames(count, seed=seed))
    ]


# ------------------------------------------------------------------ card
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_card_survives_the_file_and_its_self_test_passes(tmp_path, dtype):
    data = labelled()
    made = model(dtype=dtype)
    card = make_card(made, example=example_of(data), counts=[{"frames": 4}], data_hash="abc")
    save_model(tmp_path / "m.pt", made, {"card": card})
    loaded, found = load_with_card(tmp_path / "m.pt")
    assert found == card
    assert found["elements"] == ["C", "O"]
    assert found["e0_eV"]["dear"] == {"C": -61.0, "O": -81.0}
    result = check(loaded, found, where="m.pt")
    assert result["passed"]
    assert result["energy_off_eV_per_atom"] == 0.0


def test_the_self_test_fails_on_a_tampered_energy_force_or_weight(tmp_path):
    made = model(dtype=torch.float32)
    good = {"self_test": self_test(made, labelled()[0].atoms, "dear")}
    assert check(made, good, where="x")["passed"]
    energy = float.fromhex(good["self_test"]["energy_eV"])
    forces = list(good["self_test"]["forces_eV_per_A"])
    forces[2] = (float.fromhex(forces[2]) + 1e-3).hex()
    for change in ({"energy_eV": (energy + 1e-3).hex()}, {"forces_eV_per_A": forces}, {"fidelity": "cheap"}):
        assert not check(made, {"self_test": {**good["self_test"], **change}}, where="x")["passed"]
    with torch.no_grad():
        next(iter(made.layers.parameters())).mul_(1.01)
    assert not check(made, good, where="x")["passed"]


@pytest.mark.parametrize("change", [{"energy_eV": "x"}, {"forces_eV_per_A": ["0x1p0"]}, {"dtype": "int8"}])
def test_a_self_test_that_cannot_be_read_is_told(change):
    made = model()
    test = {**self_test(made, labelled()[0].atoms, "dear"), **change}
    with pytest.raises(ModelFileError, match=r"m\.pt: the self-test in the card"):
        check(made, {"self_test": test}, where="m.pt")


def test_a_model_without_a_card_tells_what_it_is_but_cannot_be_checked(tmp_path):
    save_model(tmp_path / "m.pt", model())
    card = read_card(tmp_path / "m.pt")
    assert card["fidelities"] == ["cheap", "dear"]
    assert "date" not in card
    with pytest.raises(ModelFileError, match="no self-test"):
        check(model(), card, where="m.pt")


def test_the_self_test_holds_the_conditions_that_the_model_reads():
    config = dataclasses.replace(CONFIG, inputs=(InputConfig("total_charge"), InputConfig("electric_field")))
    made = model(config=config)
    atoms = labelled()[0].atoms
    atoms.info.update(total_charge=1.0, electric_field=np.array([0.1, 0.0, -0.2]))
    test = self_test(made, atoms, "dear")
    assert check(made, {"self_test": test}, where="x")["passed"]
    test["inputs"]["electric_field"] = [(0.0).hex()] * 3
    assert not check(made, {"self_test": test}, where="x")["passed"]


# ------------------------------------------------------------------ comparison
def test_predictions_are_those_of_the_calculator():
    made, atoms = model(), frames(3)
    atoms.append(Atoms("CO", positions=[[0, 0, 0], [0.9, 1, 0.4]], cell=[4.0, 4.1, 3.9], pbc=True))
    found = predict([made], atoms, ["dear"] * 4, names=["energy", "forces", "stress"])
    assert ["stress" in values for values in found] == [False, False, False, True]
    for one, values in zip(atoms, found, strict=True):
        one.calc = TaceCalculator(Committee([made]))
        assert_allclose(values["energy"], one.get_potential_energy(), rtol=1e-12)  # sums in another order
        assert_allclose(values["forces"], one.get_forces(), atol=1e-11)
    assert_allclose(found[3]["stress"], atoms[3].get_stress(), atol=1e-11)


def test_a_committee_predicts_the_mean_and_the_spread_of_its_members():
    members, atoms = [model(seed=0), model(seed=1), model(seed=2)], frames(2)
    found = predict(members, atoms, ["dear"] * 2, spread=True)
    out = Committee(members)(atoms, fidelity="dear")
    assert_allclose([v["energy"] for v in found], out.mean_energies, rtol=1e-12)
    assert_allclose([v["energy_spread"] for v in found], out.energy_spread, rtol=1e-6)
    assert_allclose(np.concatenate([v["force_spread"] for v in found]), out.force_spread, rtol=1e-9)


def test_errors_agree_with_the_ones_that_campaigns_use():
    made, data = model(), labelled(5)
    table = compare([made], data)["cheap"]
    old = errors(data, Committee([made])([f.atoms for f in data], fidelity="cheap"))
    assert_allclose(table["energy"].rmse, old.energy_rmse_eV_per_atom, rtol=1e-9)
    assert_allclose(table["energy"].mae, old.energy_mae_eV_per_atom, rtol=1e-9)
    assert_allclose(table["forces"].rmse, old.force_rmse_eV_per_A, rtol=1e-9)
    assert_allclose(table["forces"].mae, old.force_mae_eV_per_A, rtol=1e-9)


def test_atoms_without_a_force_label_count_for_no_element():
    data = labelled(3)
    prediction = Committee([model()])([f.atoms for f in data], fidelity="cheap")
    known, wrong = [], []
    for frame, forces in zip(data, prediction.per_structure(prediction.mean_forces), strict=True):
        frame.forces_eV_per_A[0] = np.nan
        known.append(frame.atoms.numbers[1:])
        wrong.append(forces[1:] - frame.forces_eV_per_A[1:])
    found = errors(data, prediction).force_rmse_by_element_eV_per_A
    numbers, difference = np.concatenate(known), np.concatenate(wrong)
    assert set(found) == {"C", "O"}
    for symbol, z in (("C", 6), ("O", 8)):
        assert_allclose(found[symbol], np.sqrt((difference[numbers == z] ** 2).mean()), rtol=1e-12)


def test_each_frame_is_compared_at_its_own_fidelity_and_missing_labels_are_left_out():
    made = model()
    data = [*labelled(2, "cheap"), *labelled(3, "dear", seed=1)]
    data[0] = dataclasses.replace(data[0], forces_eV_per_A=None)
    rows = {(r["fidelity"], r["quantity"]): r["labels"] for r in error_rows(compare([made], data))}
    atoms = [len(f.atoms) for f in data]
    assert rows == {
        ("cheap", "energy"): 2,
        ("cheap", "forces"): atoms[1],
        ("dear", "energy"): 3,
        ("dear", "forces"): sum(atoms[2:]),
    }


def test_quantities_of_all_kinds_are_compared_component_by_component():
    heads = (HeadConfig("dipole", symmetry="i"), HeadConfig("mine", scope="atom", symmetry="ij"))
    made = model(config=dataclasses.replace(CONFIG, heads=heads))
    atoms = frames(2)
    names = ["energy", "dipole", "mine", "hessian", "atomic_energies"]
    truth = predict([made], atoms, ["dear"] * 2, names=names)
    data = [
        Labelled(a, "dear", labels={n: v[n] + 0.5 for n in names[1:]}, name=str(k))
        for k, (a, v) in enumerate(zip(atoms, truth, strict=True))
    ]
    partial = np.array(data[0].labels["mine"])
    partial[1] = np.nan
    data[0] = dataclasses.replace(data[0], labels={**data[0].labels, "mine": partial})
    assert set(shared([made], data)) == set(names[1:])
    table = compare([made], data)["dear"]
    for name in names[1:]:
        assert_allclose(table[name].rmse, 0.5, rtol=1e-9)
        assert_allclose(table[name].mae, 0.5, rtol=1e-9)
    assert len(table["mine"].labels) == sum(map(len, atoms)) - 1
    assert table["dipole"].unit == "e*A"


def test_a_polarisation_is_compared_up_to_lattice_vectors():
    config = dataclasses.replace(CONFIG, inputs=(InputConfig("electric_field"),))
    made = model(config=config)
    atoms = Atoms(
        "CO", positions=[[0, 0, 0], [0.9, 1, 0.4]], cell=[[4.0, 0.3, 0], [0, 4.1, 0], [0.2, 0, 3.9]], pbc=True
    )
    truth = predict([made], [atoms], ["dear"], names=["polarization"])[0]["polarization"]
    shifted = truth + 2 * atoms.cell.array[0] - atoms.cell.array[2] + 0.01
    table = compare([made], [Labelled(atoms, "dear", labels={"polarization": shifted}, name="x")])["dear"]
    assert_allclose(table["polarization"].mae, 0.01, rtol=1e-9)


def test_an_unknown_quantity_is_refused_with_what_there_is():
    with pytest.raises(TaceError, match="does not predict 'dipol'; it predicts energy, forces"):
        predict([model()], frames(1), ["dear"], names=["dipol"])


# ------------------------------------------------------------------ divergence
def history(rmse, mae):
    return [{"step": 100 * n, RMSE: r, MAE: m} for n, (r, m) in enumerate(zip(rmse, mae, strict=True))]


N = np.arange(20)


def test_a_training_that_converges_with_noise_is_no_divergence():
    noise = 1.0 + 0.08 * np.sin(7.0 * N)
    falling = np.exp(-N / 6.0) + 0.1
    assert diagnose(history(2.0 * falling * noise, falling * noise)) is None
    assert diagnose(history(2.0 * falling * noise, falling * noise)[:3]) is None
    flat = np.full(20, 0.1)
    assert diagnose(history(1.6 * flat * noise, flat)) is None
    one_bad = 2.0 * falling
    one_bad[-1] *= 10.0
    assert diagnose(history(one_bad, falling)) is None


def test_an_rmse_that_turns_up_while_the_mae_falls_is_told_with_the_step():
    mae = np.exp(-N / 10.0)
    rmse = np.where(N < 8, 2.0 * np.exp(-N / 10.0), 2.0 * np.exp(-8 / 10.0) * 1.08 ** (N - 8))
    found = diagnose(history(rmse, mae))
    assert found is not None
    assert (found.kind, found.since_step) == ("turned", 800)
    assert "heavy-tailed" in found.message
    assert "since step 800, while the MAE fell" in found.message


def test_an_rmse_far_above_a_falling_mae_is_told():
    mae = 0.5 * np.exp(-N / 8.0) + 0.02
    found = diagnose(history(0.4 * np.exp(-N / 50.0) + 0.1, mae))
    assert found is not None
    assert found.kind == "tail"


def test_errors_that_both_grow_are_told_as_such():
    shape = np.where(N < 8, 1.0 / (N + 1.0), 0.125 * 1.2 ** (N - 8))
    found = diagnose(history(2.0 * shape, shape))
    assert found is not None
    assert found.kind == "both"


def test_a_history_without_forces_has_nothing_to_tell():
    assert diagnose([{"step": n, "loss": 1.0 + n} for n in range(9)]) is None
    assert diagnose([{"step": n, RMSE: None, MAE: None} for n in range(9)]) is None


def test_the_frames_that_carry_the_error_are_named_worst_first(rng):
    labels = [rng.normal(size=(5, 3)) for _ in range(40)]
    wrong = [0.01 * rng.normal(size=(5, 3)) for _ in range(40)]
    labels[7][2] = [120.0, 0.0, 0.0]
    wrong[7][2, 0], wrong[23][0, 1] = 9.0, 8.0
    found = carriers([f"frame {n}" for n in range(40)], wrong, labels)
    assert [c.name for c in found][:1] == ["frame 7"]
    assert found[0].max_force_eV_per_A == pytest.approx(120.0)
    assert 0.5 < sum(c.share for c in found) <= 1.0
    close = [np.full((2, 3), 8.0 if n in (1, 3) else 0.0) for n in range(5)]
    assert [c.name for c in carriers(list("abcde"), close, close)] == ["b"]


def test_advice_leaves_out_what_was_done_and_what_cannot_help():
    whole = advice(les=False, forces_loss="mse", cap=None, largest_force_eV_per_A=120.0)
    assert [key in " ".join(whole) for key in ("model.les", "huber", "force_cap")] == [True, True, True]
    done = advice(les=True, forces_loss="huber", cap=None, largest_force_eV_per_A=4.0)
    assert len(done) == 1
    found = diagnose(history(np.full(9, 1.0) + np.arange(9) / 9, np.exp(-np.arange(9.0))))
    assert found is not None
    assert story(found, [], done)[0] == found.message
