"""sbatch, squeue and scancel of a few lines: jobs are processes of this machine, their ends what a test says.

For tests of what happens around jobs where no Slurm is installed.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

PROGRAMS = {
    # the last word is the script; its copy lives on when the submitter removes it
    "sbatch": """
for script; do :; done
n=$(ls jobs | wc -l); n=$((n + 1)); cp "$script" "scripts/$n"
setsid bash "scripts/$n" > "logs/$n" 2>&1 < /dev/null & echo $! > "jobs/$n"; echo $n
""",
    "squeue": """
for job in jobs/*; do
  n=${job#jobs/}; end=$(cat "ends/$n" 2>/dev/null || echo 9999999999)
  state=$(sed 's/.*) //; s/ .*//' "/proc/$(cat "$job")/stat" 2>/dev/null)
  if [ -n "$state" ] && [ "$state" != Z ]; then echo "$n|RUNNING|None|$end"
  else echo "$n|COMPLETED|None|N/A"; fi
done
""",
    "scancel": """
for n; do kill -KILL -$(cat "jobs/$n") 2>/dev/null; done; true
""",
}


class PaperSlurm:
    """The programs in a folder that a test puts first in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("jobs", "scripts", "logs", "ends"):
            (folder / name).mkdir(parents=True)
        for name, text in PROGRAMS.items():
            path = folder / name
            path.write_text(f"#!/bin/bash\ncd {folder}{text}", encoding="utf-8")
            path.chmod(0o755)

    def ends_in(self, job: str, seconds: float) -> None:
        """From now on squeue says that the job has so long to live."""
        (self.folder / "ends" / job).write_text(str(int(time.time() + seconds)), encoding="utf-8")

    def running(self) -> set[str]:
        """Jobs whose process lives; a zombie that nobody reaps does not."""
        return {path.name for path in (self.folder / "jobs").iterdir() if _lives(int(path.read_text()))}

    def kill_all(self) -> None:
        for job in self.running():
            os.killpg(int((self.folder / "jobs" / job).read_text()), signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
