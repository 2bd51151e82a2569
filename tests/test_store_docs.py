"""docs/store.md: what it shows runs, and says what we say; and folders that may not be written to."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from memory_fs import MemoryFileSystem
from store_helpers import hydrogen, label_of, labelled_frames, water
from user_campaign import campaign_folder

from alchemy.cli import main
from alchemy.errors import StoreError
from alchemy.store import Store

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_stock_h5py_reads_energies_and_forces_of_a_compacted_store(store):
    (script,) = [s for s in SCRIPTS if s.startswith("import h5py")]
    assert len(script.strip().splitlines()) <= 12
    assert "alchemy" not in script
    frames = [water(), hydrogen(1), water(0.2)]
    rows = [label_of(a, f, energy=float(i)) for i, a in enumerate(frames) for f in ("é", "pbe")]
    for atoms in frames:
        store.append(structures=[atoms])
    for row in rows:
        store.append(labels=[row])
    store.compact()
    command, how = [sys.executable, "-c", script], {"capture_output": True, "text": True, "check": True}
    done = subprocess.run(command, cwd=store.path.parent, timeout=60, **how)
    numbers = [atoms.numbers.tolist() for atoms in frames for _ in range(2)]
    expected = [
        f"{row.fidelity} {own} {row.energy_eV} {np.asarray(row.forces_eV_per_A).tolist()}"
        for row, own in zip(rows, numbers, strict=True)
    ]
    assert done.stdout.splitlines() == expected


def test_the_other_scripts_run_too(tmp_path, monkeypatch):
    store = Store(tmp_path / "copper" / "store.h5", durability="nofsync")
    store.path.parent.mkdir()
    from alchemy.identity import structure_uid
    from alchemy.store import SplitRow

    store.append(
        structures=[water()],
        labels=[label_of(water())],
        splits=[SplitRow(structure_uid(water()), "train", 0.0)],
    )
    text = "\n".join(s for s in SCRIPTS if "h5py" not in s)
    tail = "\nassert len(rows) == len(labels) == len(dataset) == 1\n"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'policies'}"}
    subprocess.run(
        [sys.executable, "-c", text + tail], cwd=tmp_path, env=environment, timeout=100, check=True
    )


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_to_is_said_and_can_be_read(code):
    fs = MemoryFileSystem()
    store = Store("/store.h5", fs=fs)
    store.append(structures=[hydrogen(0)])
    store.append(structures=[hydrogen(1)])
    opened = MemoryFileSystem.open

    def refuse(path, flags, mode=0o777):
        if flags & (os.O_CREAT | os.O_RDWR):
            raise OSError(code, os.strerror(code), str(path))
        return opened(fs, path, flags, mode)

    fs.open = refuse
    reader = Store("/store.h5", fs=fs)
    assert len(reader.snapshot()) == 2
    assert reader.check() == []
    for work in (lambda: reader.append(structures=[hydrogen(2)]), reader.compact):
        with pytest.raises(StoreError, match=os.strerror(code)):
            work()
    fs.open = lambda *arguments: opened(fs, *arguments)
    assert len(Store("/store.h5", fs=fs).snapshot()) == 2


def test_a_campaign_goes_on_with_labels_that_were_imported(tmp_path, capsys):
    """They are of the level that they were imported as, and are trained on."""
    from ase.io import write

    folder = campaign_folder(tmp_path)
    frames = labelled_frames(4)
    for atoms in frames:
        for name in ("dipole", "electric_field"):
            del atoms.info[name]
        for name in ("born_charges", "charges"):
            del atoms.arrays[name]
    write(tmp_path / "in.xyz", frames)
    words = ["data", "import", str(folder), str(tmp_path / "in.xyz"), "--fidelity", "emt", "--part", "train"]
    assert main(words) == 0
    assert main(["run", str(folder), "--until", "1"]) in (0, 5), capsys.readouterr().err
    view = Store(folder / "copper" / "store.h5").snapshot()
    codes = {row.code for row in view.labels(fidelity="emt")}
    assert any(code.startswith("imported from in.xyz") for code in codes)
    assert len(codes) == 2
