"""Labels as jobs of a real Slurm: to the end, and through everything that happens to jobs there."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_helpers import Place
from slurm_fixture import Slurm

pytestmark = pytest.mark.slurm


def test_labels_are_slurm_jobs_and_rows_of_the_pyiron_project(slurm: Slurm, tmp_path: Path):
    place = Place(tmp_path)
    code, said = place.label()
    print(said)
    assert code == 0, said
