"""Datasets: levels, reference energies, what is set aside or left out, the hash, and plug-ins."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from ase import Atoms
from emt_campaign import write_campaign
from reader_helpers import ENERGY, FORCES, SIX, crystal, one, saved, with_info

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from tace import readers
from tace.data import Labelled
from tace.errors import DataError
from tace.readers import Dataset, Source, data_hash, read_dataset


def test_levels_come_from_the_source_or_from_each_frame(tmp_path):
    path = saved(tmp_path, with_info(level="pbe"), with_info(level="hse"), with_info(level="pbe"))
    assert read_dataset([Source(path, fidelity_key="level")]).fidelities == ("pbe", "hse")
    assert read_dataset([Source(path, fidelity="lda")]).fidelities == ("lda",)
    sources = [Source(path, fidelity_key="level"), Source(path, fidelity="lda")]
    both = read_dataset(sources, fidelities=("lda", "hse"))
    assert both.fidelities == ("lda", "hse")
    assert [row["frames"] for row in both.table()] == [3, 1]
    with pytest.raises(DataError, match="did you mean 'hse'"):
        read_dataset([Source(path, fidelity_key="level")], fidelities=("hs",))
    marked, bare = saved(tmp_path, with_info(fidelity="pbe")), saved(tmp_path, with_info(), name="bare.xyz")
    with pytest.raises(DataError, match=r"bare.xyz, frame 0 does not say its level"):
        read_dataset([marked, bare])


def test_single_atoms_become_reference_energies_of_their_level(tmp_path):
    atom = Atoms("Cu", info={"REF_energy": -1.5})
    data = read_dataset([saved(tmp_path, with_info(), atom)])
    assert data.e0_eV == {"default": {29: -1.5}}
    assert len(data.frames) == 1
    alloy = with_info()
    alloy.numbers[0] = 28
    data = read_dataset([saved(tmp_path, alloy, atom)])
    assert data.e0_eV == {}
    assert len(data.frames) == 2, "an atom that cannot serve as a reference is trained on"
    assert any("fitted (no single Ni atom)" in note for note in data.notes)
    with pytest.raises(DataError, match="nothing to train on"):
        read_dataset([saved(tmp_path, atom)])


def test_frames_marked_as_test_are_set_aside(tmp_path):
    data = read_dataset([saved(tmp_path, with_info(), with_info(split="test"), with_info(split="train"))])
    assert (len(data.frames), len(data.test)) == (2, 1)


def test_frames_without_a_needed_label_are_left_out(tmp_path):
    dipole = crystal()
    dipole.info["REF_dipole"] = np.ones(3)
    path = saved(tmp_path, with_info(), dipole)
    assert len(read_dataset([path]).frames) == 2
    data = read_dataset([path], need=("energy", "forces"))
    assert len(data.frames) == 1
    assert any("left out: 1 frame with neither label" in note for note in data.notes)


def test_labels_that_nobody_reads_are_told(tmp_path):
    data = read_dataset([saved(tmp_path, with_info(REF_quadrupole=np.ones(9)))])
    assert any("not read: REF_quadrupole" in note for note in data.notes)


def test_weights_of_a_source_reach_its_frames(tmp_path):
    assert one(Source(saved(tmp_path, with_info()), weight=0.25)).weight == 0.25


def test_the_hash_follows_the_content_and_nothing_else(tmp_path):
    frames = read_dataset([saved(tmp_path, with_info(REF_stress=SIX), with_info())]).frames
    frames[1] = replace(frames[1], labels={"dipole": np.ones(3)})
    mark = data_hash(frames)
    assert len(mark) == 64
    assert data_hash(frames[::-1]) == mark
    renamed = [replace(f, name="other") for f in frames]
    for frame in renamed:
        frame.atoms.info["comment"] = "x"
    assert data_hash(renamed) == mark
    moved = frames[0].atoms.copy()
    moved.positions[0, 0] = np.nextafter(moved.positions[0, 0], 9)
    charged = frames[0].atoms.copy()
    charged.info["total_charge"] = 1
    open_ = frames[0].atoms.copy()
    open_.pbc[0] = False
    wider = frames[0].atoms.copy()
    wider.cell[0, 0] += 1e-12
    other = frames[0].atoms.copy()
    other.numbers[0] = 28
    changes = [
        *({"atoms": a} for a in (moved, charged, open_, wider, other)),
        {"energy_eV": np.nextafter(ENERGY, 0)}, {"energy_eV": None}, {"forces_eV_per_A": FORCES + 1},
        {"stress_eV_per_A3": None}, {"fidelity": "b"}, {"weight": 2.0}, {"labels": {"dipole": np.ones(3)}},
    ]  # fmt: skip
    marks = {data_hash([replace(frames[0], **change), frames[1]]) for change in changes}
    assert len(marks | {mark}) == len(changes) + 1


def reader(path, **options):
    if path.suffix != ".yaml":
        return None
    frames = read_dataset([Source(path.with_suffix(".extxyz"), fidelity="plug")]).frames
    return Dataset(frames, ("plug",), (29,), e0_eV={"plug": {29: 0.0}}, cutoff_A=options.get("cutoff", 4.0))


def careless(path):
    return Dataset([Labelled(crystal(), energy_eV=1.0)], ("plug",), (29,))


def plugin(monkeypatch, value):
    point = EntryPoint("mine", value, readers.PLUGINS)
    monkeypatch.setattr(readers, "entry_points", lambda group: [point] if group == readers.PLUGINS else [])


def test_a_plug_in_reads_what_ase_does_not(tmp_path, monkeypatch):
    plugin(monkeypatch, f"{__name__}:reader")
    path = saved(tmp_path, with_info())
    mine = tmp_path / "data.yaml"
    mine.touch()
    data = read_dataset([Source(mine, options={"cutoff": 3.0})])
    assert data.cutoff_A == 3.0
    assert data.fidelities == ("plug",)
    assert read_dataset([path]).fidelities == ("default",), "what ASE reads is not given to a plug-in"
    assert one(Source(mine, weight=0.5)).weight == 0.5
    for options in ({"keys": {"energy": "x"}}, {"index": "0"}, {"fidelity": "pbe"}):
        with pytest.raises(DataError, match="keys, fidelities and indices are for files"):
            read_dataset([Source(mine, **options)])
    with pytest.raises(DataError, match="a folder that no reader knows; installed: mine"):
        read_dataset([tmp_path])


def test_a_broken_plug_in_is_named(tmp_path, monkeypatch):
    wrong = {"nowhere:reader": "'mine' .* cannot be loaded", "builtins:str": "returned str"}
    wrong[f"{__name__}:careless"] = "frames of level 'default', which it does not list"
    for value, fragment in wrong.items():
        plugin(monkeypatch, value)
        with pytest.raises(DataError, match=fragment):
            read_dataset([tmp_path])


def test_a_campaign_is_read_through_the_plug_in_of_alchemy(tmp_path, monkeypatch):
    """With its cutoff and reference energies, and in its own words where it has no labels."""
    plugin(monkeypatch, "alchemy.cli_dataset:read_campaign")
    path = write_campaign(tmp_path)
    with pytest.raises(DataError, match="start the campaign with: alchemy run"):
        read_dataset([path])
    run_campaign(load_campaign(path), tmp_path / "mini", source=path, until=0)
    for place in (path, tmp_path / "mini"):
        data = read_dataset([place])
        assert len(data.frames) == 5
        assert len(data.test) == 2
        assert (data.fidelities, data.cutoff_A, list(data.e0_eV)) == (("emt",), 3.5, ["emt"])
    with pytest.raises(DataError, match="did you mean 'emt'"):
        read_dataset([Source(path, options={"fidelities": ["emd"]})])
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(DataError, match="a folder that no reader knows; installed: mine"):
        read_dataset([other])
