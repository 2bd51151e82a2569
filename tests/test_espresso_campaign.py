"""A whole campaign whose labels come from Quantum ESPRESSO: a metal with an adsorbate, -m codes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from program_helpers import needs_program

from alchemy.cli import main
from alchemy.store import Store

EXAMPLE = Path(__file__).parents[1] / "runs/adsorbate"
SHORTER = {  # the example itself, but for its size
    "steps: 300": "steps: 20",
    "count: 8": "count: 3",
    "count: 4": "count: 1",
    "time: 0.1 ps": "time: 0.02 ps",
    "{lda: 4}": "{lda: 2}",
    "workers: 2": "workers: 1",
}


@pytest.mark.codes
@needs_program("pw.x")
def test_a_metal_with_an_adsorbate_goes_round_with_free_energies(tmp_path, monkeypatch):
    text = (EXAMPLE / "campaign.yaml").read_text()
    for old, new in SHORTER.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "campaign.yaml").write_text(text)
    shutil.copy(EXAMPLE / "slab.xyz", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "campaign.yaml"]) == 0
    snapshot = Store(tmp_path / "adsorbate/store.h5").snapshot()
    labels = snapshot.labels()
    assert [row.status for row in labels] == ["ok"] * (2 + 3 + 1 + 2 * 2)  # atoms, start, test, two rounds
    assert {row.energy_kind for row in labels} == {"free"}
    assert len({row.fingerprint for row in labels}) == 1
    slabs = [row for row in labels if len(row.forces_eV_per_A) == 5]
    frames = snapshot.structures([row.structure_uid for row in slabs])
    assert [list(atoms.symbols) for atoms in frames] == [["Al"] * 4 + ["H"]] * 8
    for row in slabs:
        assert np.abs(row.forces_eV_per_A[:2]).max() > 0.01  # of the fixed layer: raw, not zero
        assert np.abs(row.forces_eV_per_A.sum(0)).max() < 1e-5  # pw.x subtracts the mean, eight decimals
    assert main(["data", "audit", "adsorbate"]) == 0
