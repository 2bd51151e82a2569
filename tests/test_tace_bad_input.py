"""Input that cannot be used is refused in words; input that is only unusual is treated correctly."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import torch
from ase import Atoms
from model_helpers import batch_of, build
from numpy.testing import assert_allclose
from test_tace_quantities import conditioned, lively

from tace.calculator import TaceCalculator
from tace.committee import Committee
from tace.config import HeadConfig, InputConfig, LesConfig, TaceConfig
from tace.data import Labelled, make_samples
from tace.derivatives import evaluate
from tace.errors import DataError, ModelFileError, TaceError, UnknownElementError
from tace.io import load_model, model_document, save_model, write_archive
from tace.reference import statistics


def test_two_atoms_in_one_place_are_named():
    atoms = Atoms("HOO", positions=[[0, 0, 0], [1, 0, 0], [1, 0, 1e-6]])
    with pytest.raises(DataError, match=r"HO2: atoms \d and \d are in the same place"):
        batch_of(build(), atoms)
    crystal = Atoms("HO", positions=[[0, 0, 0], [3, 0, 0]], cell=[3, 3, 3], pbc=True)
    with pytest.raises(DataError, match="same place"):  # across the cell
        batch_of(build(), crystal)


def test_an_unknown_element_is_named_with_the_frame():
    frame = Labelled(Atoms("Au"), "gfn2", 0.0, name="gold.xyz, frame 3")
    with pytest.raises(UnknownElementError, match=r"gold.xyz, frame 3: the model does not know Au"):
        make_samples([frame], build().config)


def test_a_flat_cell_is_refused():
    flat = Atoms("H", positions=[[0, 0, 0]], cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True)
    with pytest.raises(DataError, match="H: "):
        batch_of(build(), flat)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_and_labels_that_are_not_numbers_are_refused(value):
    with pytest.raises(DataError, match="positions or cell are not finite"):
        batch_of(build(), Atoms("H2", positions=[[0, 0, 0], [0, 0, value]]))
    frame = Labelled(Atoms("H"), "gfn2", value, name="third")
    with pytest.raises(DataError, match="third: energy is not finite"):
        make_samples([frame], build().config)


@pytest.mark.parametrize("les", [None, LesConfig()])
@pytest.mark.parametrize(
    "atoms",
    [
        Atoms("O"),
        Atoms("O", cell=[40, 40, 40], pbc=True),
        Atoms("OH", positions=[[0, 0, 0], [0, 0, 9.0]]),
        Atoms("HHH", positions=[[0, 0, 0], [0, 0, 9.0], [0, 9.0, 0]]),
    ],
    ids=["atom", "atom in a huge box", "no edges", "one element, no edges"],
)
def test_atoms_without_neighbours_are_free_atoms(atoms, les):
    model = lively(build(les=les))
    result = evaluate(model, batch_of(model, atoms), stress=True)
    e0 = sum({1: -10.7, 8: -110.2}[z] for z in atoms.numbers)
    assert float(result.energies) == pytest.approx(e0, rel=1e-14)
    assert (result.forces == 0).all()


def test_a_huge_cell_gives_the_molecule(structure):
    model = lively(build(les=LesConfig(n_charges=1, constraint="neutral")))
    free, boxed = structure("water"), structure("water")
    boxed.set_cell([60.0, 60.0, 60.0])
    boxed.pbc = True
    e = [float(evaluate(model, batch_of(model, a)).energies) for a in (free, boxed)]
    assert e[0] == pytest.approx(e[1], abs=1e-4)  # dipoles of some e·Å: k_e μ²/L³ ~ 7e-5 eV


def test_a_wire_with_long_range_is_refused(structure):
    model = build(les=LesConfig())
    with pytest.raises(DataError, match="one"):
        evaluate(model, batch_of(model, structure("wire")))


def test_energies_in_the_wrong_unit_do_not_pass_as_fits():
    frames = [Labelled(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.8]]), "gfn2", "a lot")]
    with pytest.raises((DataError, ValueError)):
        make_samples(frames, build().config)


# ---- files ----


def variants():
    yield build(les=LesConfig(n_charges=2), zbl=True, readout="per_fidelity")
    yield build(
        inputs=(InputConfig("electric_field", scale=0.2), InputConfig("spin_multiplicity", values=(1, 3))),
        heads=(HeadConfig("charges", scope="atom", charges="qeq"), HeadConfig("alpha", symmetry="ij=ji")),
    )
    yield build(weights="all", gate="norm", mixing="uncoupled", radial_orders=(0, 2))


@pytest.mark.parametrize("n", range(3))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_saved_model_says_the_same_to_the_last_bit(n, dtype, tmp_path, structure):
    model = list(variants())[n].to(dtype)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("_eV", "reference.shift", "reference.scale")):
                buffer += 0.3
    save_model(tmp_path / "m.pt", model)
    again = load_model(tmp_path / "m.pt")
    atoms = conditioned(structure("crystal"))
    atoms.info["spin_multiplicity"] = 3
    names = [h.name for h in model.config.heads]
    one, two = (
        evaluate(m, batch_of(m, atoms), stress=True) for m in (model, again)
    )
    assert torch.equal(one.energies, two.energies)
    assert torch.equal(one.forces, two.forces)
    for name in names:
        assert torch.equal(one.outputs[name], two.outputs[name])
    kept = ("_eV", "reference.shift", "reference.scale")
    assert all(b.dtype == torch.float64 for k, b in again.named_buffers() if k.endswith(kept))


def test_a_model_of_the_first_format_is_read(tmp_path, structure):
    model = build()
    document = model_document(model)
    old = {}
    for name, value in document["state"].items():
        name = name.replace("energy_readout.linear.", "readouts.")
        name = name.replace("energy_readout.hidden_out.0.", "hidden_out.")
        old[name.replace("energy_readout.hidden.", "hidden.").removeprefix("reference.")] = value
    new = ("les", "zbl", "inputs", "heads", "gate")
    config = {k: v for k, v in document["config"].items() if k not in new}
    write_archive(tmp_path / "old.pt", document | {"version": 1, "state": old, "config": config})
    atoms = structure("water")
    said = [
        evaluate(m, batch_of(m, atoms)).energies for m in (model, load_model(tmp_path / "old.pt"))
    ]
    assert torch.equal(*said)


def test_a_model_of_a_later_format_is_refused(tmp_path):
    write_archive(tmp_path / "new.pt", model_document(build()) | {"version": 99})
    with pytest.raises(ModelFileError, match="model format 99 is newer"):
        load_model(tmp_path / "new.pt")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = tmp_path / "evil.pt"
    torch.save({"format": "tace-model", "x": Malicious()}, path)
    with pytest.raises(ModelFileError):
        load_model(path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ModelFileError):
        load_model(tmp_path / "plain.pt")
    assert not (tmp_path / "owned").exists()


def test_a_truncated_file_is_refused(tmp_path):
    save_model(tmp_path / "m.pt", build())
    data = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match=r"m\.pt"):
        load_model(tmp_path / "m.pt")
    assert not zipfile.is_zipfile(tmp_path / "m.pt")


# ---- configurations that make no sense ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"les": LesConfig(constraint="total_charge")}, "needs the input 'total_charge'"),
        ({"weights": "all", "correlation": 1}, "weights 'all' needs"),
        ({"residual": True, "n_layers": 1}, "residual needs n_layers"),
        ({"zbl": True, "cutoff_A": 1.0}, "covalent"),
        ({"heads": (HeadConfig("mu", symmetry="i", with_charges=True),)}, "needs a head of charges"),
        ({"radial_orders": (0, 0)}, "radial_orders"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(settings, says):
    with pytest.raises(TaceError, match=says):
        build(**settings)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LesConfig(sigma_A=0.0), "les setting sigma_A = 0.0"),
        (lambda: InputConfig("total_chrge"), "did you mean 'total_charge'"),
        (lambda: InputConfig("spin_multiplicity"), "values"),
        (lambda: HeadConfig("energy"), "head energy"),
        (lambda: HeadConfig("x", symmetry="ij=kl"), "ij=kl"),
        (lambda: TaceConfig.from_json({"elements": [1], "les": {"dl": 2}}), "unknown les setting 'dl'"),
    ],
)
def test_a_part_of_a_configuration_is_checked(make, says):
    with pytest.raises(TaceError, match=says):
        make()


# ---- the calculator ----


def test_the_calculator_gives_every_quantity_and_notices_a_change_of_conditions(structure):
    model = lively(
        build(
            les=LesConfig(),
            inputs=(InputConfig("electric_field"),),
            heads=(HeadConfig("charges", scope="atom", charges="qeq"),),
        )
    )
    atoms = conditioned(structure("water"))
    atoms.calc = TaceCalculator(Committee([model]), fidelity="gfn2")
    before = atoms.get_potential_energy()
    assert atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-12)
    assert_allclose(atoms.get_dipole_moment(), atoms.calc.get_property("polarization", atoms))
    assert atoms.calc.get_property("hessian", atoms).shape == (9, 9)
    assert atoms.get_potential_energies().sum() == pytest.approx(before, rel=1e-12)
    atoms.info["electric_field"] = np.zeros(3)
    assert abs(atoms.get_potential_energy() - before) > 1e-6


def test_statistics_of_nothing_are_refused():
    with pytest.raises(DataError, match="gfn2"):
        statistics([], build().config)
