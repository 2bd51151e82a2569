"""MACE (ScaleShiftMACE, 64 channels, messages of rank 0) on frames that runs/benchmarks/run.py wrote.

    VENV/bin/python tests/bench/accuracy_mace.py --frames DIR --cpu-minutes 4

Run by an interpreter that has mace-torch; no code of ours is needed. Built as `mace_run_train --model
ScaleShiftMACE` does: isolated-atom energies, scale of the forces, shift of the mean energy; Adam with
AMSGrad 1e-2, weight decay 5e-7, loss weights energy 1 : forces 100, clip 10, averaged weights 0.99. The
learning rate falls linearly with the CPU time used. One thread, float32. Prints one JSON line.
"""

# ruff: noqa: E402 - the environment is set before torch and e3nn start
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4.4 reads a file of its own

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from ase.io import read
from e3nn import o3
from mace import data as mdata
from mace import modules
from mace.tools import AtomicNumberTable, torch_geometric

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float32)  # noqa: TID251 - MACE makes its tensors in it
CHANNELS, RATE, DECAY, CLIP, WEIGHT_DECAY = 64, 1e-2, 0.99, 10.0, 5e-7
ENERGY_WEIGHT, FORCES_WEIGHT = 1.0, 100.0


def build(frames, e0, cutoff):
    """The model with the statistics of the training frames."""
    elements = sorted({int(z) for a in frames for z in a.numbers})
    if not set(elements) <= e0.keys():  # none given: fitted by least squares, as E0s="average" does
        counts = np.array([[np.sum(a.numbers == z) for z in elements] for a in frames], float)
        fit = np.linalg.lstsq(counts, np.array([a.info["REF_energy"] for a in frames]), rcond=None)[0]
        e0 = dict(zip(elements, fit, strict=True))
    table = AtomicNumberTable(elements)
    graphs = {"train": [graph(a, table, cutoff) for a in frames]}
    edges = sum(g.edge_index.shape[1] for g in graphs["train"]) / sum(len(a) for a in frames)
    forces = np.concatenate([a.arrays["REF_forces"] for a in frames])
    shift = np.mean([(a.info["REF_energy"] - sum(e0[int(z)] for z in a.numbers)) / len(a) for a in frames])
    torch.manual_seed(0)
    model = modules.ScaleShiftMACE(
        r_max=cutoff, num_bessel=8, num_polynomial_cutoff=5, max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2, num_elements=len(elements),
        hidden_irreps=o3.Irreps(f"{CHANNELS}x0e"), MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu, atomic_energies=np.array([e0[z] for z in elements]),
        avg_num_neighbors=edges, atomic_numbers=elements, correlation=3, radial_type="bessel",
        radial_MLP=[64, 64, 64], atomic_inter_scale=float(np.sqrt((forces**2).mean())),
        atomic_inter_shift=float(shift),
    ).to(torch.float32)  # fmt: skip
    return model, table, graphs


def graph(atoms, table, cutoff):
    keys = mdata.KeySpecification(info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"})
    config = mdata.config_from_atoms(atoms, key_specification=keys)
    return mdata.AtomicData.from_config(config, z_table=table, cutoff=cutoff)


def optimizer(model):
    """Parameter groups of `mace.tools.scripts_utils.get_params_options`."""
    decayed, others = [], []
    for name, parameter in model.interactions.named_parameters():
        chosen = "linear.weight" in name or "skip_tp_full.weight" in name
        (decayed if chosen else others).append(parameter)
    groups = [
        {"params": list(model.node_embedding.parameters()), "weight_decay": 0.0},
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
        {"params": list(model.products.parameters()), "weight_decay": WEIGHT_DECAY},
        {"params": list(model.readouts.parameters()), "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, lr=RATE, amsgrad=True)


def train(model, graphs, seconds, size):
    """Steps and CPU seconds; the averaged weights end up in the model."""
    chosen = optimizer(model)
    own = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in own]
    rng, order, step, start = np.random.default_rng(0), [], 0, time.process_time()
    while (used := time.process_time() - start) < seconds:
        if len(order) < size:
            order = rng.permutation(len(graphs)).tolist()
        picked, order = order[:size], order[size:]
        batch = torch_geometric.Batch.from_data_list([graphs[n] for n in picked])
        for group in chosen.param_groups:
            group["lr"] = RATE * max(1.0 - used / seconds, 1e-3)
        chosen.zero_grad(set_to_none=True)
        out = model(batch.to_dict(), training=True, compute_force=True)
        atoms = (batch.ptr[1:] - batch.ptr[:-1]).to(torch.float32)
        energy = ((out["energy"] - batch.energy) / atoms).square().mean()
        forces = (out["forces"] - batch.forces).square().mean()
        (ENERGY_WEIGHT * energy + FORCES_WEIGHT * forces).backward()
        torch.nn.utils.clip_grad_norm_(own, CLIP)
        chosen.step()
        step += 1
        decay = min(DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in own], 1.0 - decay)
    with torch.no_grad():
        for parameter, value in zip(own, average, strict=True):
            parameter.copy_(value)
    return step, time.process_time() - start


def errors(model, frames, table, cutoff):
    """RMSE and MAE, eV per atom and eV/Å."""
    energies, forces = [], []
    for start in range(0, len(frames), 16):
        part = frames[start : start + 16]
        batch = torch_geometric.Batch.from_data_list([graph(a, table, cutoff) for a in part])
        out = model(batch.to_dict(), training=False, compute_force=True)
        true = np.array([a.info["REF_energy"] for a in part])
        atoms = np.array([len(a) for a in part])
        energies += ((out["energy"].detach().double().numpy() - true) / atoms).tolist()
        known = np.concatenate([a.arrays["REF_forces"] for a in part])
        forces.append(out["forces"].detach().double().numpy() - known)
    named = {"energy": np.array(energies), "forces": np.concatenate(forces)}
    return {
        k: {"rmse": float(np.sqrt((v**2).mean())), "mae": float(np.abs(v).mean())} for k, v in named.items()
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--cpu-minutes", type=float, required=True)
    parser.add_argument("--batch", type=int, default=5)
    args = parser.parse_args(argv)
    facts = json.loads((args.frames / "facts.json").read_text())

    def frames(name):
        found = read(args.frames / f"{name.replace(' ', '_')}.extxyz", ":")
        for atoms in found:
            atoms.calc = None
        return found

    e0 = {int(z): float(e) for z, e in facts["e0"].items()}
    model, table, graphs = build(frames("train"), e0, facts["cutoff"])
    steps, used = train(model, graphs["train"], 60 * args.cpu_minutes, args.batch)
    print(json.dumps({
        "model": f"mace-torch {version('mace-torch')} ScaleShiftMACE {CHANNELS}-0", "steps": steps,
        "cpu_s": round(used, 1), "parameters": sum(p.numel() for p in model.parameters()),
        "errors": {name: errors(model, frames(name), table, facts["cutoff"]) for name in facts["sets"]},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
