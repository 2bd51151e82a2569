"""A program that has calculated already: puts the files of a folder where it is started.

`stdout` and `stderr` are printed, `code` is the exit code; from the second start on it is the folder `next`.
"""

import shutil
import sys
from pathlib import Path

folder = Path(sys.argv[1])
started = folder / "started"
times = len(started.read_text().splitlines()) if started.exists() else 0
with started.open("a") as file:
    file.write("again\n")
if times and (folder / "next").is_dir():
    folder = folder / "next"
for path in folder.iterdir():
    if path.is_file() and path.name not in ("stdout", "stderr", "code", "started"):
        shutil.copy(path, path.name)
for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
    if (folder / name).exists():
        stream.write((folder / name).read_text())
sys.exit(int((folder / "code").read_text()) if (folder / "code").exists() else 0)
