"""Compiled graphs: they give the numbers of the model, for all structures, and PyTorch stands in for them."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from conftest import _structure
from model_helpers import TINY, batch_of, build, evaluated
from numpy.testing import assert_allclose

from tace import graphs
from tace.calculator import TaceCalculator
from tace.committee import Committee
from tace.compiling import compile_file
from tace.config import InputConfig, LesConfig
from tace.derivatives import evaluate, stresses_of
from tace.graphs import GraphError
from tace.io import load_model, save_model
from tace.radial_tables import with_tables
from tace.recorded import recordable
from tace.recording import batch_tensors, fits, inference, record, varying, weights

# one model with all that a graph can hold, and one as plain as possible
EVERYTHING = {
    "les": LesConfig(), "zbl": True, "gate": "norm", "residual": True, "mixing": "uncoupled",
    "inputs": (InputConfig("electric_field"), InputConfig("total_charge"), InputConfig("magnetic_moments")),
}  # fmt: skip
SHAPES = (("water",), ("ethanol", "water"), ("crystal",), ("slab", "carbon", "water"))


def recorded_graph(model):
    """The graph of a model as PyTorch runs it."""
    example = [_structure("ethanol"), _structure("crystal")]
    for atoms in example:
        atoms.arrays["magnetic_moments"] = np.full((len(atoms), 3), 0.1)
    batch = batch_of(model, *example)
    made = recordable(model)
    function = inference(made, sorted(batch.inputs))
    return record(function, values_of(model), batch_tensors(batch), varying(batch))


def values_of(model):
    """What a graph is called with besides a batch."""
    return [x.detach() for x in weights(recordable(model)).values()]


def tabulated(**changes):
    return with_tables(build(**changes), [])[0].requires_grad_(False)


@pytest.fixture(scope="module")
def graph():
    """Of the small model with radial tables, which most tests share: recording takes seconds."""
    return recorded_graph(tabulated())


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_graph_recorded_once_gives_the_numbers_of_the_model_for_any_structures(changes, graph, structure):
    model = tabulated(**changes)
    if changes:
        graph = recorded_graph(model)
    values = values_of(model)
    for names in SHAPES:
        frames = [structure(name) for name in names]
        for atoms in frames:
            atoms.info["electric_field"] = np.array([0.01, -0.02, 0.03])
            atoms.info["total_charge"] = 1.0
            atoms.arrays["magnetic_moments"] = 0.1 * atoms.positions
        wanted = evaluated(model, *frames, fidelity=1)
        batch = batch_of(model, *frames, fidelity=1)
        energies, forces, slope, features = graph(values, batch_tensors(batch))
        # round-off of float64, of energies of thousands of eV
        assert_allclose(energies, wanted.energies, rtol=1e-13)
        assert_allclose(forces, wanted.forces, atol=1e-10)
        assert_allclose(stresses_of(slope, batch), wanted.stresses, atol=1e-11)
        assert_allclose(features, wanted.features, atol=1e-12)


def test_a_graph_holds_no_weights_so_that_it_serves_models_that_are_trained_further(graph, structure):
    model, other = tabulated(), build(avg_neighbors=5.0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.1
        other.e0_eV[:] = 2.0
    other = with_tables(other, [])[0]
    batch = batch_of(other, structure("ethanol"))
    _, forces, *_ = graph(values_of(other), batch_tensors(batch))
    assert_allclose(forces, evaluated(other, structure("ethanol")).forces, atol=1e-10)
    assert graphs.graph_path(model, "forces") == graphs.graph_path(other, "forces")
    assert graphs.graph_path(model, "forces") != graphs.graph_path(build(), "forces")


def test_single_atoms_and_pairs_that_a_graph_cannot_hold_are_left_to_pytorch(structure):
    model = build()
    assert not fits(batch_of(model, structure("atom")))
    assert not fits(batch_of(model, structure("water")[:2]))
    assert fits(batch_of(model, structure("water")))


def test_without_a_compiler_pytorch_does_the_work_and_the_log_says_why(
    tmp_path, monkeypatch, caplog, structure
):
    save_model(tmp_path / "model.pt", build(torch.float32))
    monkeypatch.setenv("TACE_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    report = compile_file(tmp_path / "model.pt", tmp_path / "fast.pt")
    assert "no compiler 'no-such-compiler'" in report["graph"]["failed"]
    with caplog.at_level(logging.INFO, logger="tace"):
        committee = Committee([load_model(tmp_path / "fast.pt")])
    assert committee.graphs is None
    assert "no compiled graph, PyTorch does it" in caplog.text
    assert np.isfinite(committee([structure("water")]).mean_forces).all()


def test_a_model_that_cannot_be_recorded_is_an_error_that_says_why(structure):
    def depends_on_a_number(values, tensors):
        return (tensors[0] if float(values[0].sum()) > 0 else -tensors[0],)

    batch = batch_of(build(), structure("ethanol"), structure("water"))

    with pytest.raises(GraphError, match=r"GuardOnDataDependent|DataDependent"):
        graphs.compile_graph(depends_on_a_number, [torch.ones(2)], batch_tensors(batch), varying(batch))


def test_graphs_can_be_switched_off(monkeypatch, caplog):
    model = tabulated()
    monkeypatch.setenv("TACE_GRAPHS", "0")
    with caplog.at_level(logging.INFO, logger="tace"):
        assert graphs.find(model) is None
    assert "TACE_GRAPHS=0" in caplog.text


class _Built:
    """A graph that is there, without the half minute that building it takes."""

    def __init__(self, graph, monkeypatch, tmp_path, *, graph_ms: float = 1.0):
        self.calls = 0
        monkeypatch.setattr(graphs, "graph_path", lambda *_: tmp_path / "graph.pt2")
        monkeypatch.setattr(graphs, "opened", lambda *_: self)
        figures = graphs.Figures(graphs.hashlib.sha256(b"x").hexdigest(), 30.0, 2.0, graph_ms, 0.0, 0.0)
        (tmp_path / "graph.pt2").write_bytes(b"x")
        (tmp_path / "graph.json").write_text(graphs.json.dumps(figures._asdict()))
        self.graph = graph

    def __call__(self, values, tensors):
        self.calls += 1
        return self.graph(values, tensors)


def test_calculators_committees_and_sessions_use_the_graph_and_say_the_same(
    graph, structure, monkeypatch, tmp_path, rng
):
    members = [tabulated(), tabulated(avg_neighbors=6.0)]
    frames = [structure("crystal"), structure("ethanol")]
    options = {"member_forces": True, "stress": True, "features": True}
    plain = Committee(members)
    wanted, mean = plain(frames, **options), plain(frames, member_forces=False, stress=True)
    built = _Built(graph, monkeypatch, tmp_path)
    committee = Committee(members)
    found = committee(frames, **options)
    assert built.calls == 2
    for name in ("energies", "forces", "mean_forces", "stresses", "features", "n_atoms"):
        assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-9, err_msg=name)
    assert_allclose(committee(frames, member_forces=False, stress=True).stresses, mean.stresses, atol=1e-10)
    atoms = frames[1]
    atoms.calc = TaceCalculator(Committee(members[:1]))
    assert_allclose(atoms.get_forces(), wanted.forces[0][len(frames[0]) :], atol=1e-10)
    session = committee.session([frames[1]])
    moved = frames[1].positions + 0.01 * rng.standard_normal((len(frames[1]), 3))
    frames[1].positions = moved
    assert_allclose(session(moved).forces, plain([frames[1]]).forces, atol=1e-10)
    assert built.calls > 4


def test_a_graph_that_does_not_pay_is_not_used(monkeypatch, tmp_path, caplog):
    model = tabulated()
    _Built(None, monkeypatch, tmp_path, graph_ms=3.0)
    with caplog.at_level(logging.INFO, logger="tace"):
        assert graphs.find(model) is None
    assert "takes 3 ms and PyTorch 2 ms" in caplog.text
    assert "not used" in graphs.status(model)


def test_a_damaged_graph_is_not_opened(monkeypatch, tmp_path, caplog):
    model = tabulated()
    _Built(None, monkeypatch, tmp_path)
    assert graphs.find(model) is not None
    (tmp_path / "graph.pt2").write_bytes(b"y")
    with caplog.at_level(logging.INFO, logger="tace"):
        assert graphs.find(model) is None
    assert "'tace compile' builds one" in caplog.text


def test_a_graph_that_fails_is_given_up_and_pytorch_goes_on(structure, monkeypatch, tmp_path, caplog):
    model = tabulated()
    wanted = Committee([model])([structure("water")])
    built = _Built(None, monkeypatch, tmp_path)

    def fail(values, tensors):
        raise RuntimeError("out of something")

    committee = Committee([model])
    committee.graphs.members = tuple((fail, values) for _, values in committee.graphs.members)
    found = committee([structure("water")])
    assert_allclose(found.mean_forces, wanted.mean_forces, atol=1e-12)
    assert committee.graphs.failed and not built.calls and "out of something" in caplog.text


@pytest.mark.slow
def test_a_compiled_graph_gives_the_numbers_of_the_model_and_is_built_once(tmp_path, monkeypatch, structure):
    monkeypatch.setenv("TACE_CACHE", str(tmp_path / "cache"))
    changes = {"les": LesConfig(), "channels": 4}
    save_model(tmp_path / "model.pt", build(torch.float32, **changes))
    report = compile_file(tmp_path / "model.pt", tmp_path / "fast.pt")
    assert "failed" not in report["graph"], report["graph"]
    fast = load_model(tmp_path / "fast.pt")
    committee, plain = Committee([fast]), Committee([load_model(tmp_path / "model.pt")])
    if committee.graphs is None:  # it did not pay on this machine; it has to be right all the same
        monkeypatch.setattr(graphs.Figures, "pays", property(lambda self: True))
        committee = Committee([fast])
    for names in (*SHAPES, ("atom",), ("ethanol",)):
        frames = [structure(name) for name in names]
        found, wanted = (c(frames, stress=True) for c in (committee, plain))
        assert_allclose(found.mean_forces, wanted.mean_forces, atol=2e-4)  # float32
        assert_allclose(found.energies, wanted.energies, atol=1e-3)
        assert_allclose(found.stresses, wanted.stresses, atol=2e-4)
    # further trained, with other statistics: nothing is built
    other = with_tables(build(torch.float32, **changes, avg_neighbors=5.0), [])[0]
    assert graphs.build(other, []).seconds == report["graph"]["seconds"]
    assert dataclasses.asdict(other.config)["avg_neighbors"] != TINY.avg_neighbors


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_a_graph_is_judged_by_its_rounding_however_large_forces_are(size):
    """A deviation of 1e-6 of the largest force is rounding in float32, one of 1e-2 is another function."""
    model = build(dtype=torch.float32).requires_grad_(False)
    model.energy_readout.linear[0].weight *= size
    model.energy_readout.hidden_out[0].weight *= size
    batch = batch_of(model, _structure("ethanol"), _structure("crystal"))
    exact = evaluate(model, batch)
    largest = exact.forces.abs().max()
    assert (largest > 1e4) == (size > 1.0)
    allowed = graphs.TOLERANCE[torch.float32][1] * max(1.0, float(model.scale_eV.max()))
    for share, is_right in ((1e-6, True), (1e-2, False)):

        def call(values, tensors, share=share):
            return exact.energies, exact.forces + share * largest

        off = graphs._difference(model, call, [], batch)
        assert off[0] == 0.0
        assert (off[1] <= allowed) == is_right
