"""Kernels in C++, compiled where they run: on first use, by the system's compiler, into a cache of the user.

They make things faster and nothing depends on them: without a compiler, after a failed build or with
TACE_NATIVE=0 a line in the log says why, and PyTorch does the work. Kernels see plain addresses (ctypes), so
that a build takes seconds and outlives a change of PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

log = logging.getLogger("tace")

# .cpp is compiled, all into one library
SOURCES = ("edge_sum.cpp", "product.cpp", "spline.cpp", "edge_sum.h", "simd.h")
BASE = ("-std=c++17", "-O3", "-fPIC", "-shared", "-w")
# the first that the compiler takes: this machine's instructions and threads, then less
CHOICES = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ())
TIMEOUT_S = 300.0
_DIGEST = hashlib.sha256().digest_size

Check = Callable[[ctypes.CDLL], None]


class NativeError(Exception):
    """Why there is no library; never reaches users."""


def library(check: Check, what: str = "edge sum") -> ctypes.CDLL | None:
    """The compiled kernels, or None, with a line in the log, where PyTorch has to do.

    Args:
        check: raises NativeError if a library computes something else than it should.
        what: that it is wanted for.
    """
    try:
        if not wanted():
            log.info("TACE_NATIVE=0: %s by PyTorch", what)
            return None
        return _load(check)
    except (NativeError, OSError, subprocess.SubprocessError) as error:
        log.warning("no compiled %s, PyTorch does it more slowly: %s", what, error)
        return None


def wanted() -> bool:
    """Unless TACE_NATIVE=0."""
    return os.environ.get("TACE_NATIVE", "1").strip() != "0"


def build() -> Path:
    """Compile, unless the cache has it, and return the path.

    Without a compiler a library of the same source and machine will do: nodes of a cluster often have none.

    Raises:
        NativeError: no compiler and nothing in the cache, or the compiler fails.
        OSError: the cache cannot be written.
    """
    try:
        path = _path()
    except NativeError:
        for path in sorted(cache_folder().glob(f"{_stem()}-*.so")):
            if _intact(path):
                return path
        raise
    if not _intact(path):
        _compile(path)
    return path


def _load(check: Check) -> ctypes.CDLL:
    path = build()
    try:
        return _opened(path, check)
    except (NativeError, OSError) as error:  # perhaps a file of a machine that was another one
        log.warning("%s is built anew: %s", path, error)
        _compile(path)
        return _opened(path, check)


def _opened(path: Path, check: Check) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    check(found)
    return found


def cache_folder() -> Path:
    """$TACE_CACHE, or `tace` in the user's cache folder."""
    own = os.environ.get("TACE_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "tace"


def _stem() -> str:
    """Of the names of all libraries of this source and machine."""
    return f"kernels-{_key(*_sources().values(), repr((BASE, CHOICES)), _cpu())}"


def _path() -> Path:
    """Where the library of this source, machine and compiler is."""
    return cache_folder() / f"{_stem()}-{_key(*_compiler(), _version())}.so"


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _sources() -> dict[str, str]:
    folder = resources.files("tace") / "kernels"
    return {name: (folder / name).read_text(encoding="utf-8") for name in SOURCES}


def _compiler() -> list[str]:
    """$CXX with its arguments, or the first compiler on the PATH."""
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        if shutil.which(given[0]) is None:
            raise NativeError(f"there is no compiler '{given[0]}', which CXX names")
        return given
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return [found]
    raise NativeError("there is no C++ compiler (c++, g++, clang++) on the PATH")


def _version() -> str:
    command = [*_compiler(), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


@functools.cache
def _cpu() -> str:
    """What -march=native depends on."""
    lines = [platform.machine(), platform.processor()]
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    first = text.partition("\n\n")[0].splitlines()
    keep = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(lines + [line for line in first if line.startswith(keep)])


def _intact(path: Path) -> bool:
    """Whether the file is there and ends in the digest of the rest; loading a damaged one may crash."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _compile(path: Path) -> None:
    """Into a temporary folder beside the file, then renamed, so that any number of processes may do it.

    Raises:
        NativeError: no compiler, or it refuses the source with every choice of options.
    """
    command = _compiler()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    units = [name for name in SOURCES if name.endswith(".cpp")]
    log.info("compiling %s for this machine, once", " and ".join(units))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as folder:
        sources, made = [str(Path(folder) / name) for name in units], Path(folder) / "made.so"
        for name, text in _sources().items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        message = ""
        for choice in CHOICES:
            done = subprocess.run(
                [*command, *BASE, *choice, *sources, "-o", str(made)],
                capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
            if done.returncode == 0 and made.exists():
                content = made.read_bytes()
                made.write_bytes(content + hashlib.sha256(content).digest())
                os.replace(made, path)
                return
            message = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr[:200])
    raise NativeError(f"{command[0]} fails: {message.strip()}")


def main() -> int:
    """Compile and try the kernels, as at set-up, and say what came of it."""
    from . import edge_sum, product

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if edge_sum.compiled() is None or product.compiled() is None:
        print("PyTorch will do the work of the compiled kernels")
    else:
        print(f"compiled kernels: {build()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
