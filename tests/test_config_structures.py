"""Items of structures in campaign files: read, explained, checked, made, explored; and `alchemy sample`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from alchemy_policies.health import health
from ase import Atoms
from ase.build import bulk, fcc111
from ase.constraints import FixAtoms
from ase.io import read, write
from user_campaign import CAMPAIGN

from alchemy.cli import main
from alchemy.config import campaign_warnings, load_campaign_text
from alchemy.config_blocks import StopMd
from alchemy.config_explain import explain
from alchemy.config_samples import EXPLORERS, SAMPLE_KINDS
from alchemy.errors import ConfigError
from alchemy.plugins import find
from alchemy.records import atoms_from_document, atoms_to_document, frame_to_document
from alchemy.sampling import Order, keys_of
from alchemy.stages.downhill import PER_TASK
from alchemy.stages.explore import conditions
from alchemy.stages.watch import watch_training
from alchemy.store import Store

START = """\
start:
  - reico: {count: 6, mix: {Cu: 1-4, Pd: [0, 2], O: 1}, kinds: [bulk, cluster], nearest: [1.6 A, 3 A]}
    label: {emt: all}
  - reico: {count: 2, mix: {Cu: 2-3}, adsorbate: {H: 1}, kinds: [adsorbate], relax_with: emt, relax_steps: 2}
    label: {emt: all}
  - bulk: {formula: Cu, volumes: [0.94, 1.06]}
    label: {emt: all}
  - slab: {formula: Cu, facets: [111], thickness: 3 A, adsorbates: [O], sites: [ontop], fixed: 0.5}
    label: {emt: all}
  - substitute: {structures: cu.xyz, count: 2, replace: Cu, by: [Pd], fraction: 0.5}
    label: {emt: all}
  - vacancy: {structures: cu.xyz, count: 1, fraction: [0.1, 0.2], repeat: [2, 1, 1]}
    label: {emt: all}
  - strain: {structures: cu.xyz, steps: 1, modes: [shear]}
    label: {emt: 2}
  - basin_hopping: {structures: cu.xyz, with: emt, hops: 1, relax_steps: 2, step: 0.3 A}
    label: {emt: all}
"""
EXPLORE = """\
explore:
  - reico: {count: 3, mix: {Cu: 1-4, Pd: 0-2}, relax_steps: 2}
  - reico: {count: 2, adsorbate: {H: 1-2}, kinds: [adsorbate], structures: slab.xyz, relax_steps: 2}
  - basin_hopping: {structures: slab.xyz, hops: 1, relax_steps: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True), format="extxyz")
    slab = fcc111("Cu", (1, 1, 3), vacuum=5, periodic=True)
    slab.info.clear()
    slab.set_constraint(FixAtoms([0]))
    write(tmp_path / "slab.xyz", slab, format="extxyz")
    return tmp_path


def campaign(folder: Path, *changes: tuple[str, str]) -> str:
    """The text of a campaign with all kinds of items, changed."""
    head, rest = CAMPAIGN.split("start:\n")
    test, end = rest.split("test:\n")[1].split("explore:\n")
    text = head + START + "test:\n" + test + EXPLORE + "select:" + end.split("select:")[1]
    text = text.replace("elements: [Cu]", "elements: [Cu, Pd, H, C, O]")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / "campaign.yaml").write_text(text, encoding="utf-8")
    return text


def load(folder: Path, *changes: tuple[str, str]):
    return load_campaign_text(campaign(folder, *changes), "c.yaml", folder)


def test_every_kind_of_item_is_explained_and_read_back_equal(folder):
    given = load(folder)
    again = load_campaign_text(explain(given), "x", folder)
    assert again == given
    assert given.start[0].reico.mix == {"Cu": (1, 4), "Pd": (0, 2), "O": (1, 1)}
    assert given.start[0].reico.kinds == {"bulk": 1.0, "cluster": 1.0}
    assert given.start[0].reico.nearest_A == (1.6, 3.0)
    assert given.start[4].substitute.fraction == (0.5, 0.5)
    assert [item.kind for item in given.explore] == ["reico", "reico", "basin_hopping"]
    assert given.start[0].most == 6 and given.start[1].most == 6 and given.start[3].most is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Cu: 1-4, Pd: [0, 2]", "Cu: 4-1", r"start\[0\]\.reico\.mix\.Cu: found 4 to 1"),
        ("Cu: 1-4, Pd: [0, 2]", "Cu: many", "write a range such as 0-6"),
        ("Cu: 1-4, Pd: [0, 2]", "Ag: 1-4", r"reico\.mix: found Ag, which is not among the campaign's"),
        ("Cu: 1-4, Pd: [0, 2]", "Cx: 1-4", "'Cx', not an element symbol"),
        ("kinds: [bulk, cluster]", "kinds: [slab]", r"kinds: found 'slab', no such kind; known: bulk"),
        ("kinds: [bulk, cluster]", "atoms: 30-40", "mix gives 2 to 7 atoms, and atoms asks for 30 to 40"),
        ("nearest: [1.6 A, 3 A]", "nearest: [2.7 A, 3 A]", "raise volume_ratio to"),
        ("nearest: [1.6 A, 3 A]", "nearest: [3 A, 2 A]", "nearest is"),
        ("nearest: [1.6 A, 3 A]", "frames: 2", "frames: has no effect without relax_with"),
        ("nearest: [1.6 A, 3 A]", "methd: grow", "did you mean 'method'"),
        ("relax_with: emt", "relax_with: pbe", "no such fidelity"),
        ("with: emt, hops", "with: pbe, hops", r"basin_hopping\.with: found 'pbe'"),
        ("fraction: 0.5", "fraction: 1.5", "found 1.5; must be at most 1"),
        ("fraction: 0.5", "fraction: [0.5, 0.2]", "needs 0 < first ≤ second ≤ 1"),
        ("replace: Cu", "replace: Au", r"substitute\.replace: found Au"),
        ("label: {emt: 2}", "label: [pbe]", "no such fidelity"),
        ("volumes: [0.94, 1.06]}\n    label: {emt: all}", "volumes: [1.0]}\n    label: {emt: 3}",
         "the item makes 1 structures"),
        ("slab: {formula: Cu", "slab: {structures: cu.xyz, formula: Cu", "formula: has no effect"),
        ("slab: {formula: Cu,", "slab: {", "formula: missing"),
        ("structures: slab.xyz, hops", "structures: slap.xyz, hops", "did you mean 'slab.xyz'"),
        ("structures: slab.xyz, relax", "structures: slab.xyz, mix: {Cu: 1-2}, relax", "mix: has no effect"),
        ("strain: {", "strain: {largest: 0.7, ", "must be less than 0.5"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_name_key_and_remedy(folder, old, new, said):
    with pytest.raises(ConfigError, match=said):
        load(folder, (old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("facets: [111]", "facets: [12]", "start[3].slab.facets: found '12'; write Miller indices"),
        ("facets: [111]", "facets: ['1120']", "does not exist"),
        ("adsorbates: [O]", "adsorbates: [C0]", "start[3].slab.adsorbates: found 'C0'"),
        ("formula: Cu, volumes", "formula: CuPd, prototype: fcc, volumes",
         "start[2].bulk.prototype: fcc needs"),
        ("replace: Cu", "replace: H", "start[4].substitute: Cu4 holds no H"),
        ("structures: slab.xyz, relax", "structures: cu.xyz, relax",
         "explore[1].reico.structures: cu.xyz: none"),
    ],
)  # fmt: skip
def test_what_only_making_it_shows_is_found_by_check(folder, run, old, new, said):
    campaign(folder, (old, new))
    code, _, err = run("check", folder)
    assert code == 2
    assert said in err


@pytest.mark.skipif(importlib.util.find_spec("rdkit") is None, reason="RDKit is not installed")
def test_check_reads_smiles(folder, run):
    smiles = "smiles: {smiles: [CCO, 'C(C'], conformers: 40}\n    label: {emt: all}\n  - bulk: {formula"
    campaign(folder, ("bulk: {formula", smiles))
    code, _, err = run("check", folder)
    assert code == 2 and "start[2].smiles.smiles: 'C(C' is no molecule" in err


def test_check_says_what_will_be_made(folder, run):
    campaign(folder)
    code, out, _ = run("check", folder)
    assert code == 0
    assert "start[0].reico: for example 4 structures" in out
    assert "start[6].strain: 7 structures of 4 atoms (Cu), periodic" in out


def test_random_structures_without_long_range_are_warned_of(folder):
    assert not any("les" in text for text in campaign_warnings(load(folder)))
    without = load(folder, ("train: {steps", "les: false, train: {steps"))
    assert any("model.les: false, with random structures from start[0].reico" in t
               for t in campaign_warnings(without))  # fmt: skip
    large = load(folder, ("Cu: 1-4, Pd: [0, 2]", "Cu: 1-30"), ("kinds: [bulk", "method: reico, kinds: [bulk"))
    assert any("up to 31 atoms" in text for text in campaign_warnings(large))


def test_many_random_structures_are_shared_among_tasks_and_options_fit_their_explorers(folder):
    given = load(folder, ("reico: {count: 3, mix", f"reico: {{count: {2 * PER_TASK + 7}, mix"))
    tasks = conditions(given.explore[0], StopMd())
    assert [task["count"] for task in tasks] == [PER_TASK, PER_TASK, 7]
    for item in given.explore:
        for options in conditions(item, StopMd()):
            json.dumps(options)  # a task's request
            find("explorers", item.kind)(**options)
    assert {"md", "reico", "basin_hopping"} <= set(EXPLORERS) and "reico" in SAMPLE_KINDS


def test_what_holds_atoms_goes_with_a_walk_and_not_with_a_label(folder):
    slab = read(folder / "slab.xyz")
    assert "fixed" not in atoms_to_document(slab)
    back = atoms_from_document(json.loads(json.dumps(frame_to_document(slab))))
    assert back.constraints[0].index.tolist() == [0]
    stored = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2]])
    stored.set_array("fixed", np.array([False, True]))  # as the store gives it
    assert frame_to_document(stored)["fixed"] == [1]
    assert "fixed" not in frame_to_document(Atoms("Cu"))


def test_a_campaign_of_all_kinds_runs_and_keeps_random_structures_health(folder, capsys):
    campaign(folder)
    assert main(["run", str(folder)]) in (0, 5)
    outcome = folder / "copper"
    facts = json.loads((outcome / "rounds" / "001" / "round.json").read_text(encoding="utf-8"))
    made = facts["reico"]
    assert made["structures"] >= 5
    assert 1.0 < made["nearest_A"]["least"] <= made["nearest_A"]["p50"] < 4.0
    assert made["forces"]["rms_eV_per_A"] > 0
    snapshot = Store(outcome / "store.h5").snapshot()
    events = [e for e in snapshot.events() if e.kind == "candidate"]
    assert {e.sampler for e in events} == {"reico", "basin_hopping"}
    orphans = {e.sampler for e in events if e.parent_uid is None}
    assert orphans == {"reico"}  # those that grew on a slab have a parent
    assert any(e.sampler == "reico" and e.parent_uid is not None for e in events)
    hopped = [e.structure_uid for e in events if e.sampler == "basin_hopping"]
    slab = read(folder / "slab.xyz")
    for atoms in snapshot.structures(sorted(set(hopped))):
        assert atoms.positions[0] == pytest.approx(slab.positions[0], abs=1e-12)
        assert atoms.arrays["fixed"].tolist() == [True, False, False]
    _explores_alone(folder, outcome / "final", capsys)


def _explores_alone(folder: Path, models: Path, capsys) -> None:
    """The same explorers on the command line, with the committee that has just been trained."""
    capsys.readouterr()
    where = f"structures={folder / 'slab.xyz'}"
    for words in (
        ["grow", "count=3", "mix={Cu: 2-4}", "relax_steps=2"],
        ["basin-hopping", where, "hops=1", "relax_steps=2"],
        ["md", where, "T=[300 K]", "time=10 fs", "timestep=2 fs", "check_every=5", "walkers=1"],
    ):
        assert main(["sample", *words, "--model", str(models), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["health"]["forces"]["rms_eV_per_A"] > 0
        assert told["force_calls"] > 0 and sum(told["outcomes"].values()) > 0
    assert main(["sample", *words, "--model", str(models / "member-0.pt")]) == 2
    assert "one model has no spread" in capsys.readouterr().err


def test_a_diverging_training_is_told_with_what_helps():
    said: list[str] = []
    progress = type("Progress", (), {"message": lambda _, text: said.append(text)})()

    def context(les: bool):
        model = type("Model", (), {"les": les})
        given = type("Campaign", (), {"model": model, "start": (), "explore": ()})
        return type("Context", (), {"campaign": given, "progress": progress})

    def history(rmse):
        return [{"step": 50 * n, "force_rmse_eV_per_A": x, "force_mae_eV_per_A": 0.1 - 0.01 * n}
                for n, x in enumerate(rmse)]  # fmt: skip

    turning = {"member": 1, "history": history([0.3, 0.2, 0.3, 0.4, 0.5])}
    well = {"member": 0, "history": history([0.3, 0.25, 0.2, 0.18, 0.15])}
    assert watch_training(context(True), [well]) == [] and said == []
    found = watch_training(context(False), [well, turning])
    assert [(f["member"], f["kind"]) for f in found] == [(1, "turned")]
    assert "member 1" in said[0] and "model.les: true" in said[0]


# ---- alchemy sample


def test_sample_makes_what_a_campaign_makes_and_the_same_again(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    words = ("sample", "grow", "count=12", "mix={Pd: 1-6, O: 0-3}", "kinds=[bulk, surface]")
    for name, seed in (("a.xyz", 1), ("b.xyz", 1), ("c.xyz", 2)):
        code, out, _ = run(*words, "-o", name, "--seed", seed)
        assert code == 0 and "12 structures in" in out
    one, again, other = ((folder / name).read_bytes() for name in ("a.xyz", "b.xyz", "c.xyz"))
    assert one == again != other
    code, out, _ = run(*words, "--seed", 1, "--json")
    told = json.loads(out)["health"]
    assert told["nearest_A"] == pytest.approx(health(read("a.xyz", ":"))["nearest_A"], abs=1e-6)
    assert told["isolated_atoms"] == 0.0


def test_sample_of_every_kind_that_needs_no_model(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    orders = {
        "reico": ["count=2", "mix={Cu: 2-3, Pd: 1}", "--labeler", "emt", "relax_steps=2"],
        "bulk": ["formula=NaCl", "prototype=rocksalt", "a=5.64 A"],
        "slab": ["structures=cu.xyz", "facets=[100]", "thickness=3 A"],
        "rattle": ["structures=cu.xyz", "count=2", "stdev=0.1 A"],
        "strain": ["structures=cu.xyz", "steps=1"],
        "substitute": ["structures=cu.xyz", "count=2", "replace=Cu", "by=[Ag]", "fraction=0.3"],
        "vacancy": ["structures=cu.xyz", "count=2", "fraction=0.3"],
        "md": ["structures=cu.xyz", "T=[300 K]", "time=10 fs", "count=2", "--labeler", "{labeler: emt}"],
        "basin-hopping": ["structures=cu.xyz", "hops=1", "relax_steps=2", "--labeler", "emt"],
    }
    for kind, words in orders.items():
        code, out, err = run("sample", kind, *words, "-o", f"{kind}.xyz")
        assert code == 0, (kind, err)
        assert ("force" in out) == ("--labeler" in words)
        assert "nearest neighbour" in out
        assert len(read(f"{kind}.xyz", ":")) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grow", "count"], "write settings as KEY=VALUE"),
        (["grow", "count=2", "count=3"], "count: given twice"),
        (["grow", "count=2"], "mix is empty"),
        (["grow", "count=2", "mix={Qq: 1}"], "grow.mix.Qq: found 'Qq', not an element"),
        (["grow", "cuont=2"], "did you mean 'count'"),
        (["bulk", "formula=Cu", "--model", "x.pt"], "bulk takes no model"),
        (["md", "structures=cu.xyz", "T=[300 K]", "time=1 ps", "count=2"], "md needs forces"),
        (["md", "T=[300 K]", "time=1 ps", "--model", "x.pt"], "md.structures: missing"),
        (["grow", "count=2", "mix={Cu: 2}", "--model", "x.pt"], "--model x.pt: there is no model file"),
        (["rattle", "structures=none.xyz", "count=1", "stdev=0.1 A"], "no such structure file"),
        (["bulk", "formula=Cu", "-o", "no/where.xyz"], "there is no folder"),
    ],
)
def test_sample_says_what_is_wrong_with_an_order(folder, run, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    code, _, err = run("sample", *words)
    assert code == 2
    assert said in err


def test_sample_lists_the_keys_of_a_kind(run):
    code, out, _ = run("sample", "grow", "--keys")
    assert code == 0 and "volume_ratio" in out and "relax_with" not in out
    explored = Order("md", {}, 0, (Path("m.pt"),), None, None)
    assert "ensemble" in {row["key"] for row in keys_of(explored)}
