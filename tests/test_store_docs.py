"""docs/store.md: what it shows runs, and says what we say; and folders that may not be written to."""

import errno
import os
import re
import shutil
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


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="apt-get install hdf5-tools")
def test_h5dump_opens_a_compacted_store_and_a_commit(store):
    """Another program with another libhdf5: 1.10 where Debian has it, while files are written with 2.0."""
    frames = [water(), hydrogen(1)]
    labels = [label_of(frames[0], energy=-1.5), label_of(frames[1], energy=2.25)]
    store.append(structures=frames, labels=labels)
    (commit,) = store.directory.glob("c*.h5")
    copy = Path(shutil.copy(commit, store.path.with_name("commit.h5")))
    store.compact()
    for path in (store.path, copy):
        how = {"capture_output": True, "text": True, "timeout": 60}
        header = subprocess.run(["h5dump", "-H", str(path)], **how)
        assert (header.returncode, header.stderr) == (0, "")
        assert {"labels", "structures", "integrity"} <= set(re.findall(r'GROUP "(\w+)"', header.stdout))
        assert re.search(r'DATASET "energy" \{\s+DATATYPE  H5T_IEEE_F64LE', header.stdout)
        values = ["h5dump", "-y", "-w", "0", "-d", "/labels/energy", str(path)]
        assert "-1.5, 2.25" in subprocess.run(values, **how).stdout
        units = ["h5dump", "-a", "/labels/atoms/forces/unit", str(path)]
        assert "eV/Angstrom" in subprocess.run(units, **how).stdout
