"""The program of `chaos_emt.ChildEMT`: a structure from standard input, EMT's numbers to standard output."""

import json
import os
import sys
import time

from ase import Atoms
from ase.calculators.emt import EMT

document = json.load(sys.stdin)
time.sleep(float(os.environ["CHAOS_NAP_S"]))
atoms = Atoms(
    numbers=document["numbers"],
    positions=document["positions_A"],
    cell=document["cell_A"],
    pbc=document["pbc"],
)
atoms.calc = EMT()
print(
    json.dumps(
        {
            "energy": float(atoms.get_potential_energy()),
            "forces": atoms.get_forces().tolist(),
            "stress": atoms.get_stress().tolist(),
        }
    )
)
