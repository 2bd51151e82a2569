"""Model files: what is written is read, and what cannot be read says so by its name."""

from __future__ import annotations

import pickletools
import zipfile

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from tace.committee import Committee
from tace.config import preset
from tace.errors import ModelFileError
from tace.io import (
    VERSION,
    load_model,
    model_document,
    model_from_document,
    read_archive,
    save_model,
    write_archive,
)
from tace.model import Tace

E0 = {"gfn2": {1: -10.70000000123, 6: -48.8, 8: -110.2}, "pbe": {1: -13.6, 6: -1029.2, 8: -2041.9}}


def build(dtype: torch.dtype = torch.float32) -> Tace:
    config = preset(
        "nano",
        elements=(1, 6, 8),
        fidelities=("gfn2", "pbe"),
        cutoff_A=3.4,
        channels=4,
        radial_hidden=(8,),
        avg_neighbors=3.0,
    )
    model = Tace(config, seed=3, dtype=dtype)
    model.set_reference(E0, {"gfn2": 0.8, "pbe": 1.3}, {"gfn2": -0.3, "pbe": 0.1})
    return model


@pytest.fixture
def path(tmp_path):
    save_model(tmp_path / "member-0.pt", build())
    return tmp_path / "member-0.pt"


def answer(model: Tace, structure):
    frames = [structure("water"), structure("crystal")]
    return Committee([model])(frames, stress=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_read_back_gives_the_same_numbers_to_the_bit(dtype, structure, tmp_path):
    model = build(dtype)
    save_model(tmp_path / "m.pt", model)
    again = load_model(tmp_path / "m.pt")
    assert again.config == model.config
    assert again.dtype == dtype
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    a, b = answer(model, structure), answer(again, structure)
    assert (a.energies == b.energies).all()
    assert (a.mean_forces == b.mean_forces).all()
    assert (a.stresses[:, 1] == b.stresses[:, 1]).all()


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64])
def test_a_cast_keeps_reference_energies_in_float64(stored, wanted, structure, tmp_path):
    model = build(stored)
    save_model(tmp_path / "m.pt", model)
    cast = load_model(tmp_path / "m.pt", dtype=wanted)
    assert cast.dtype == wanted
    for name in ("e0_eV", "scale_eV", "shift_eV"):
        assert getattr(cast, name).dtype == torch.float64
        assert torch.equal(getattr(cast, name), getattr(model, name))
    assert float(cast.e0_eV[0, 0]) == E0["gfn2"][1], "rounded to float32 on the way"
    a, b = answer(model, structure), answer(cast, structure)
    # float32 rounding through a chain of some ten operations
    assert_allclose(b.energies, a.energies, rtol=0, atol=2e-5)
    assert_allclose(b.mean_forces, a.mean_forces, atol=2e-5 * np.abs(a.mean_forces).max())


def test_a_cast_model_is_the_model_built_in_that_dtype(structure, tmp_path):
    """No buffer is left behind in the old dtype: what is computed from the settings included."""
    save_model(tmp_path / "m.pt", build(torch.float64))
    single = load_model(tmp_path / "m.pt", dtype=torch.float32)
    expected = build(torch.float32)
    for (name, a), (_, b) in zip(
        single.named_buffers(), expected.named_buffers(), strict=True
    ):
        assert a.dtype == b.dtype, name
    # weights are drawn in float64 and rounded either way
    a, b = answer(single, structure), answer(expected, structure)
    assert (a.energies == b.energies).all()


def test_the_same_model_is_written_as_the_same_bytes(path, tmp_path):
    save_model(tmp_path / "other name.pt", build())
    assert (tmp_path / "other name.pt").read_bytes() == path.read_bytes()


def test_what_is_stored_beside_the_model_comes_back(tmp_path):
    extra = {"training": '{"steps": 5}', "seeds": [1, 2], "facts": {"rmse": 0.1}}
    save_model(tmp_path / "m.pt", build(), extra)
    assert read_archive(tmp_path / "m.pt")["extra"] == extra


def test_a_file_holds_tensors_and_plain_values_and_no_code_of_ours(path):
    torch.load(path, weights_only=True)  # would refuse any other class
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        code = archive.read(name)
    modules = {
        str(argument).split()[0] for op, argument, _ in pickletools.genops(code) if op.name == "GLOBAL"
    }
    assert modules <= {"torch", "torch._utils", "collections"}, modules


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("pwned",)

    torch.save({"format": "tace-model", "config": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelFileError, match=r"evil\.pt"):
        load_model(tmp_path / "evil.pt")


# ---- files that cannot be read ----


def refused(path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.pt")


def test_a_directory_is_refused_by_name(tmp_path):
    refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_what_is_no_archive_is_refused_by_name(content, tmp_path):
    (tmp_path / "m.pt").write_bytes(content)
    refused(tmp_path / "m.pt")


def test_a_truncated_file_is_refused_by_name_wherever_it_was_cut(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 25):
        path.write_bytes(whole[:length])
        refused(path)


def test_a_flipped_bit_in_a_weight_is_noticed(path):
    """torch does not compare checksums: a damaged weight would be just another model."""
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        tensors = [i for i in archive.infolist() if "/data/" in i.filename and i.file_size > 200]
    assert len(tensors) > 3
    for info in tensors:
        broken = bytearray(whole)
        broken[info.header_offset + 300] ^= 1  # behind the header and its padding of at most 64
        path.write_bytes(broken)
        if broken[info.header_offset + 300 :] != whole[info.header_offset + 300 :]:
            refused(path)


def test_no_flipped_bit_escapes_as_another_kind_of_error(path, rng):
    whole = path.read_bytes()
    noticed = 0
    for _ in range(150):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            load_model(path)  # a flipped bit of padding or of a time stamp does no harm
        except ModelFileError as error:
            noticed += path.name in str(error)
    assert noticed > 50


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": VERSION + 1}, "newer than this tace reads"),
        ({"version": None}, "version"),
        ({"version": "one"}, "version"),
        ({"format": "other"}, "not a tace model"),
        ({"format": None}, "not a tace model"),
        ({"config": {}}, "not a complete"),
        ({"config": {"elements": [1], "channel": 3}}, "channel"),
        ({"config": {"elements": [1]}}, "not a complete"),
        ({"dtype": "float99"}, "not a complete"),
        ({"state": {}}, "not a complete"),
    ],
)
def test_a_document_with_wrong_parts_is_refused_by_the_name_of_its_file(changes, says, tmp_path):
    write_archive(tmp_path / "odd.pt", {**model_document(build()), **changes})
    assert says in refused(tmp_path / "odd.pt")


@pytest.mark.parametrize("part", ["format", "version", "config", "dtype", "state"])
def test_a_document_without_one_of_its_parts_is_refused(part, tmp_path):
    document = model_document(build())
    del document[part]
    write_archive(tmp_path / "odd.pt", document)
    refused(tmp_path / "odd.pt")


def test_an_archive_of_something_else_is_refused(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pt")
    refused(tmp_path / "list.pt")


def test_an_older_document_of_the_same_version_is_read():
    document = model_document(build())
    del document["extra"]
    assert model_from_document(document).config == build().config


# ---- writing ----


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_model(path, build(torch.float64))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_stored_leaves_no_file(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        write_archive(tmp_path / "m.pt", {"function": lambda: None})
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_and_files_are_readable_by_others(tmp_path):
    path = tmp_path / "a" / "b" / "m.pt"
    save_model(path, build())
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["m.pt"]
