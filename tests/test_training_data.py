"""Training straight from a store: the same frames in the same order, whoever works and compacts meanwhile."""

import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from store_helpers import in_conditions, label_of, water
from torch.utils.data import DataLoader

from alchemy.datasets import labelled
from alchemy.errors import InputError
from alchemy.identity import structure_uid
from alchemy.store import SplitRow, Store
from alchemy.training_data import StoreBatches, StoreDataset
from tace.readers import data_hash


@pytest.fixture
def many(tmp_path):
    """Thirty commits of five molecules; some labels with weights, fields, dipoles or without forces."""
    store = Store(tmp_path / "store.h5", durability="nofsync")
    rng = np.random.default_rng(0)
    for k in range(30):
        frames = [water(0.01 * (5 * k + i)) for i in range(5)]
        forces = rng.normal(size=(5, 3, 3))
        pairs = zip(frames, forces, strict=True)
        rows = [label_of(a, energy=rng.normal(), forces_eV_per_A=f) for a, f in pairs]
        if k % 3 == 0:
            rows[0] = in_conditions(frames[0], electric_field=[0, 0, 0.1])
            rows[1] = label_of(frames[1], properties={"dipole": np.ones(3), "weight": np.array(3.0)})
            rows[2] = label_of(frames[2], "ccsd", forces_eV_per_A=None)
        parts = ["train"] * 4 + ["test"]
        splits = [SplitRow(structure_uid(a), p, 0.0) for a, p in zip(frames, parts, strict=True)]
        store.append(structures=frames, labels=rows, splits=splits)
    return store


def test_the_frames_are_those_of_the_store(many):
    dataset = StoreDataset(many.path)
    view = many.snapshot()
    parts = view.part_of()
    rows = [row for row in view.labels() if parts[row.structure_uid] == "train"]
    assert data_hash([dataset[i] for i in range(len(dataset))]) == data_hash(labelled(view, rows))
    assert sorted({f.weight for f in dataset.__getitems__(range(len(dataset)))}) == [1.0, 3.0]
    assert len(StoreDataset(many.path, part="test")) == 30
    assert len(StoreDataset(many.path, part=None, fidelities=["ccsd"])) == 10
    fields = StoreDataset(many.path, expression="electric_field > 0.05")
    assert [f.atoms.info["electric_field"].tolist() for f in fields] == [[0, 0, 0.1]] * 10
    for wrong in ({"fidelities": ["pbr"]}, {"part": "trian"}):
        with pytest.raises(InputError, match=r"no labels of 'pbr'|in part 'trian'"):
            StoreDataset(many.path, **wrong)


def test_batches_of_arrays_hold_what_the_frames_hold(many):
    dataset = StoreDataset(many.path, part=None)
    batch = dataset.arrays([7, 3, 100])
    frames = dataset.__getitems__([7, 3, 100])
    np.testing.assert_array_equal(batch["positions"], np.concatenate([f.atoms.positions for f in frames]))
    np.testing.assert_array_equal(batch["energies"], [f.energy_eV for f in frames])
    forces = [np.full((3, 3), np.nan) if f.forces_eV_per_A is None else f.forces_eV_per_A for f in frames]
    np.testing.assert_array_equal(batch["forces"], np.concatenate(forces))
    assert batch["n_atoms"].tolist() == [3, 3, 3]


CASES = [
    (0, None),
    (2, "fork"),
    pytest.param(1, "spawn", marks=pytest.mark.slow),
    pytest.param(4, "forkserver", marks=pytest.mark.slow),
]


def told(batches):
    return [[(f.name, f.energy_eV, f.atoms.positions.tolist()) for f in batch] for batch in batches]


@pytest.mark.parametrize(("workers", "start"), CASES)
def test_every_number_of_workers_gives_the_same_batches_while_the_store_is_compacted(many, workers, start):
    own = StoreDataset(many.path)
    expected = told(own.__getitems__(b) for b in StoreBatches(own, 8, seed=3))
    dataset = StoreDataset(many.path)
    batches = StoreBatches(dataset, 8, seed=3)
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=list, num_workers=workers, multiprocessing_context=start
    )
    stop = threading.Event()

    def disturb():
        other, i = Store(many.path, durability="nofsync"), 0
        while not stop.is_set():
            frame = water(50 + 0.01 * i)
            splits = [SplitRow(structure_uid(frame), "train", 0.0)]
            other.append(structures=[frame], labels=[label_of(frame)], splits=splits)
            other.compact(full=i % 2 == 0)
            i += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = told(loader)
    finally:
        stop.set()
        thread.join()
    assert found == expected
    again = StoreDataset(many.path, as_of=dataset.as_of)
    assert told(again.__getitems__(b) for b in StoreBatches(again, 8, seed=3)) == expected


def test_orders_depend_on_seed_and_epoch_alone(many):
    dataset = StoreDataset(many.path)
    batches = StoreBatches(dataset, 16, seed=1)
    first = list(batches)
    assert list(batches) == first
    assert sorted(i for batch in first for i in batch) == list(range(len(dataset)))
    assert len(first) == len(batches)
    batches.set_epoch(1)
    assert list(batches) != first
    drawn = np.concatenate(list(StoreBatches(dataset, 16, seed=1, by_weight=True)))
    heavy = dataset.weights == 3
    # the expected share is 30 of 140 draws; three standard deviations of a binomial are 15
    share = heavy.sum() * 3 / dataset.weights.sum() * len(dataset)
    assert abs(heavy[drawn].sum() - share) < 16
    weighted = StoreDataset(many.path, fidelity_weights={"ccsd": 5.0})
    assert weighted.weights.max() == 5


def test_a_dataset_travels_as_path_and_row_numbers_and_maps_its_data(many, monkeypatch):
    monkeypatch.setattr("alchemy.store.segment.READ_WHOLE", 100)
    many.compact()
    dataset = StoreDataset(many.path)
    expected = told([dataset.__getitems__(range(5))])
    assert len(pickle.dumps(dataset)) < 40 * len(dataset) + 2000
    again = pickle.loads(pickle.dumps(dataset))
    assert told([again.__getitems__(range(5))]) == expected
    reader = again._open()
    column = reader.columns["structures"][0]["atoms/positions"]
    assert not column.flags.owndata
    assert not column.flags.writeable
    tracemalloc.start()
    for _ in range(20):
        again.arrays(range(len(again)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20, "batches are made anew, nothing is collected"
