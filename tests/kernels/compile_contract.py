"""Compile the kernels for a target given as sm_80, sm_90 or gfx942, and assert what came out.

Run by test_kernel_contract.py in a process without TRITON_INTERPRET; needs no GPU and no driver.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shaped_kernels.adam_triton import BLOCK, adam_kernel
from shaped_kernels.sgd_triton import sgd_kernel

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ADAM = {"DECOUPLED": True, "AMSGRAD": False, "MAXIMIZE": False}
# name, kernel, constexprs, element type, loads and stores of 128 bits per thread in fp32 (8 elements: 2 each)
CASES: list[tuple[str, Any, dict[str, bool], str, int, int]] = [
    ("adamw fp32", adam_kernel, ADAM, "fp32", 8, 6),
    ("adamw bf16", adam_kernel, ADAM, "bf16", 4, 3),
    ("adamw amsgrad fp32", adam_kernel, {**ADAM, "AMSGRAD": True}, "fp32", 10, 8),
    ("sgd momentum fp32", sgd_kernel, {"MOMENTUM": True, "NESTEROV": True, "MAXIMIZE": False}, "fp32", 6, 4),
]


def compiled(
    kernel: Any, constants: dict[str, Any], element: str, target: GPUTarget, aligned: bool = True, n: str = "i32"
) -> dict[str, Any]:
    """Compile for aligned pointers and a length divisible by 16, as most launches have, or for anything."""
    names = list(kernel.arg_names)
    constants = {**constants, "BLOCK": BLOCK}
    row = "*fp64" if element == "fp64" else "*fp32"
    types = {a: row if a == "row_ptr" else f"*{element}" if a.endswith("_ptr") else n for a in names}
    signature = {a: "constexpr" if a in constants else types[a] for a in names}
    attrs = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(names) if a not in constants and aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    asm: dict[str, Any] = triton.compile(source, target=target, options={"num_warps": 4, "enable_fp_fusion": True}).asm
    return asm


def nvidia_faults(asm: dict[str, Any], loads: int, stores: int) -> list[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [BIN / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([BIN / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
    registers = int(re.findall(r"REG:(\d+)", usage)[-1])
    found = {
        "128-bit loads": (len(re.findall(r"\bLDG\.E\.128\b|\bLDG\S*\.128", sass)), loads),
        "128-bit stores": (len(re.findall(r"\bSTG\S*\.128", sass)), stores),
        "spills": (len(re.findall(r"\b(?:STL|LDL)\b", sass)), 0),
        "double-precision instructions": (len(re.findall(r"\b(?:DADD|DMUL|DFMA|F2F\S*F64\S*)\b", sass)), 0),
    }
    faults = [f"{what}: expected {wanted}, got {got}" for what, (got, wanted) in found.items() if got != wanted]
    return faults + ([f"registers: {registers} > 64"] if registers > 64 else [])


def amd_faults(asm: dict[str, Any], wide: bool) -> list[str]:
    text = asm["amdgcn"]
    faults = [] if not wide or "dwordx4" in text else ["no 128-bit accesses"]
    faults += [f"spills: {n}" for n in re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text) if int(n)]
    if re.search(r"\bv_\w+_f64", text):
        faults.append("double-precision instructions")
    return faults


def main(name: str) -> int:
    cuda = name.startswith("sm_")
    target = GPUTarget("cuda", int(name[3:]), 32) if cuda else GPUTarget("hip", name, 64)
    faults = []
    for title, kernel, constants, element, loads, stores in CASES:
        asm = compiled(kernel, constants, element, target)
        found = nvidia_faults(asm, loads, stores) if cuda else amd_faults(asm, wide=True)
        faults += [f"{name} {title}: {fault}" for fault in found]
    # Doubles and unaligned views beyond 2**31 elements need no figures, but must compile, rounding to nearest.
    asm = compiled(adam_kernel, {**ADAM, "AMSGRAD": True}, "fp64", target, aligned=False, n="i64")
    compiled(sgd_kernel, {"MOMENTUM": False, "NESTEROV": False, "MAXIMIZE": True}, "fp16", target, aligned=False)
    if cuda and not ("sqrt.rn.f64" in asm["ptx"] and "div.rn.f64" in asm["ptx"]):
        faults.append("adamw fp64: root or division is not rounded to nearest")
    print("\n".join(faults))
    return len(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
