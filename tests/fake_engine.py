"""The program behind `program_helpers.FakeLabeler`: reads one input file, behaves as told."""

import json
import os
import signal
import subprocess
import sys
import time


def main(arguments):
    print("FAKE version 4.2")
    if "--version" in arguments:
        return 0
    values, symbols, positions = {}, [], []
    with open(arguments[0]) as file:
        for line in file:
            key, _, value = line.strip().partition(" = ")
            if key == "atom":
                symbol, *xyz = value.split()
                symbols.append(symbol)
                positions.append([float(x) for x in xyz])
            elif value:
                values[key] = value
    with open("scratch.wfc", "w") as file:
        file.write("large")
    with open("threads", "w") as file:
        file.write(os.environ["OMP_NUM_THREADS"])
    done = behave(values["behaviour"], float(values["mixing"]), positions)
    if done is not None:
        return done
    write_result(symbols, positions, float(values["stiffness"]))
    print("DONE")
    return 0


def behave(behaviour, mixing, positions):
    """None: go on to the result."""
    if behaviour == "hard" and mixing > 0.2:
        print("NOT CONVERGED after 60 steps, DONE")
        return 2
    if behaviour == "crash":
        print("deep trouble in subroutine davcio", file=sys.stderr)
        return 1
    if behaviour == "full":
        print("write failed: No space left on device", file=sys.stderr)
        return 1
    if behaviour == "stop":
        return 0
    if behaviour == "moved":
        positions[0][0] += 0.01
    if behaviour == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "killed" or (behaviour == "killed-once" and not os.path.exists("killed")):
        with open("killed", "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour in ("sleep", "orphan"):
        # a program of its own session and process group, as MPI launchers start them
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        with open("pids", "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        if behaviour == "sleep":
            time.sleep(60)
    return None


def write_result(symbols, positions, k):
    energy, forces = 0.0, [[0.0] * 3 for _ in symbols]
    for i in range(len(symbols) - 1):
        for axis in range(3):
            step = positions[i + 1][axis] - positions[i][axis]
            energy += 0.5 * k * step**2
            forces[i][axis] += k * step
            forces[i + 1][axis] -= k * step
    with open("result.json", "w") as file:
        json.dump({"symbols": symbols, "positions": positions, "energy": energy, "forces": forces}, file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
