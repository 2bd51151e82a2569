"""Run by test_edge_triton.py: compiles the kernels for GPUs of some architectures and prints sizes."""

from __future__ import annotations

import inspect
import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tace import triton_kernels

REAL = ("y", "w", "s", "g", "out", "to_y", "to_w", "coupling")
INDEX = ("table", "sender", "pair", "reverse", "pair_slots")
TILES = {"L1": 1, "M1": 4, "M2": 8, "M3": 8, "BLOCK": 32}


def kinds(kernel, real: str, constants: dict) -> dict[str, str]:
    """Types of all arguments, as Triton writes them."""
    named = dict.fromkeys(REAL, f"*{real}") | dict.fromkeys(INDEX, "*i64") | {"sign": "*fp64"}
    named |= dict.fromkeys(constants, "constexpr")
    return {name: named.get(name, "i32") for name in inspect.signature(kernel.fn).parameters}


def main() -> None:
    for architecture in sys.argv[1:]:
        for real in ("fp32", "fp64"):
            for name in ("receive", "send", "exchange"):
                kernel, constants = getattr(triton_kernels, name), dict(TILES)
                if name == "exchange":
                    constants |= {"WIDTH": 16, "NEED_Y": True, "NEED_W": True}
                source = ASTSource(kernel, kinds(kernel, real, constants), constexprs=constants)
                made = triton.compile(source, target=GPUTarget("cuda", int(architecture), 32))
                print(json.dumps({"kernel": name, "real": real, "bytes": len(made.asm["cubin"])}), flush=True)


if __name__ == "__main__":
    main()
