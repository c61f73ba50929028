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
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shaped_kernels.adam8_triton import adam8_kernel
from shaped_kernels.adam_triton import adam_kernel
from shaped_kernels.launch_triton import options
from shaped_kernels.lion_triton import lion_kernel
from shaped_kernels.rows_triton import adam_row_kernel, lion_row_kernel, schedule_free_row_kernel, sgd_row_kernel
from shaped_kernels.schedule_free_triton import schedule_free_kernel
from shaped_kernels.sgd_triton import sgd_kernel
from shaped_kernels.table_triton import squares_kernel
from shaped_kernels.tables import BLOCK

PER_LANE = 8  # elements: BLOCK over 4 warps of 32 lanes, or 2 of 64
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
PLAIN: dict[str, Any] = {
    **{"P": tl.float32, "G": tl.float32, "M": tl.float32, "E": tl.float32, "BLOCK": BLOCK, "STORE": 0},
    **{"MAXIMIZE": False, "SCALED": False, "GUARDED": False, "EMA": False, "ZERO": False},
}
ADAM = {**PLAIN, "DECOUPLED": True, "CAREFUL": False, "AMSGRAD": False}
ADAM8 = {**PLAIN, "DECOUPLED": True, "CAREFUL": False}
SGD = {**PLAIN, "MOMENTUM": True, "NESTEROV": True, "DECOUPLED": False}
LION = {**PLAIN, "DECOUPLED": True, "CAREFUL": False}
FULL = {"SCALED": True, "GUARDED": True, "EMA": True, "ZERO": True}
NARROW = {"P": tl.bfloat16, "G": tl.bfloat16}
SPLIT = {"P": tl.uint16, "G": tl.bfloat16, "STORE": 2}
# name, kernel, constants; on the fast path: bytes read and written per element in accesses of 128 bits, and the bytes
# of 8-bit codes, whose 8 elements a lane are 64 bits
CASES: list[tuple[str, Any, dict[str, Any], int, int, int]] = [
    ("adamw fp32", adam_kernel, ADAM, 16, 12, 0),
    ("adamw fp32, all fused", adam_kernel, {**ADAM, **FULL}, 20, 20, 0),
    ("adam amsgrad fp32", adam_kernel, {**ADAM, "DECOUPLED": False, "AMSGRAD": True}, 20, 16, 0),
    ("adamw bf16", adam_kernel, {**ADAM, **NARROW, "M": tl.bfloat16}, 8, 6, 0),
    ("adamw bf16 stochastic", adam_kernel, {**ADAM, **NARROW, "M": tl.bfloat16, "STORE": 1}, 8, 6, 0),
    ("adamw bf16 stochastic, fp32 moments", adam_kernel, {**ADAM, **NARROW, "STORE": 1}, 12, 10, 0),
    ("adamw split", adam_kernel, {**ADAM, **SPLIT}, 14, 12, 0),
    ("adamw 8-bit, bf16 stochastic", adam8_kernel, {**ADAM8, **NARROW, "STORE": 1}, 4, 2, 2),
    ("adamw 8-bit, split, clipped", adam8_kernel, {**ADAM8, **SPLIT, "SCALED": True}, 6, 4, 2),
    ("sgd fp32", sgd_kernel, {**SGD, "MOMENTUM": False, "NESTEROV": False}, 8, 4, 0),
    ("sgd momentum fp32", sgd_kernel, SGD, 12, 8, 0),
    ("sgd momentum fp32, all fused", sgd_kernel, {**SGD, **FULL}, 16, 16, 0),
    ("sgd momentum split", sgd_kernel, {**SGD, **SPLIT}, 10, 8, 0),
    ("adamw fp32, cautious decay", adam_kernel, {**ADAM, "CAREFUL": True}, 16, 12, 0),
    ("sgd fp32, decay apart", sgd_kernel, {**SGD, "MOMENTUM": False, "NESTEROV": False, "DECOUPLED": True}, 8, 4, 0),
    ("lion fp32", lion_kernel, LION, 12, 8, 0),
    ("lion fp32, all fused, cautious decay", lion_kernel, {**LION, **FULL, "CAREFUL": True}, 16, 16, 0),
    ("lion bf16 stochastic", lion_kernel, {**LION, **NARROW, "M": tl.bfloat16, "STORE": 1}, 6, 4, 0),
    ("lion split", lion_kernel, {**LION, **SPLIT}, 10, 8, 0),
    ("schedule-free fp32", schedule_free_kernel, PLAIN, 16, 12, 0),
    ("schedule-free fp32, all fused", schedule_free_kernel, {**PLAIN, **FULL}, 20, 20, 0),
    ("schedule-free split", schedule_free_kernel, {**PLAIN, **SPLIT}, 14, 12, 0),
    ("gradient norm fp32", squares_kernel, {"G": tl.float32, "BLOCK": BLOCK}, 4, 0, 0),
    ("gradient norm bf16", squares_kernel, {"G": tl.bfloat16, "BLOCK": BLOCK}, 2, 0, 0),
]
ROW = {"CLIP": True, "GUARD": True, "SCALE": True, "FOUND": True, "ADVANCE": True}
TYPES = {"addresses": "*i64", "chunks": "*i64", "n_tensors": "i32", "n_chunks": "i32", "n_partials": "i32"}
TYPES |= {"hypers": "*fp64", "step_ptr": "*fp32", "scale_ptr": "*fp32", "found_ptr": "*fp32"}


def compiled(kernel: Any, constants: dict[str, Any], target: GPUTarget, wide: str = "fp32") -> dict[str, Any]:
    """Compile as a launch does: tables and rows are aligned, of the tensors the kernel is told in the chunk table."""
    types = {**TYPES, "row": f"*{wide}", "partials": f"*{wide}"}
    names = list(kernel.arg_names)
    signature = {a: "constexpr" if a in constants else types[a] for a in names}
    pointers = [i for i, a in enumerate(names) if a not in constants and types[a].startswith("*")]
    attrs = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    asm: dict[str, Any] = triton.compile(source, target=target, options=options(target.backend)).asm
    return asm


def nvidia_faults(asm: dict[str, Any], reads: int, writes: int, codes: int) -> list[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [BIN / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([BIN / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
    registers = int(re.findall(r"REG:(\d+)", usage)[-1])
    # Wide accesses are those of the fast path: the ragged one is scalar. ptxas unrolls the loops of small kernels.
    loads, stores = (len(re.findall(rf"\b{kind}\S*\.128", sass)) for kind in ("LDG", "STG"))
    unrolled = max(1, loads * 16 // (reads * PER_LANE))
    found = {
        "128-bit loads": (loads, unrolled * reads * PER_LANE // 16),
        "128-bit stores": (stores, unrolled * writes * PER_LANE // 16),
        "spills": (len(re.findall(r"\b(?:STL|LDL)\b", sass)), 0),
        "double-precision instructions": (len(re.findall(r"\b(?:DADD|DMUL|DFMA|F2F\S*F64\S*)\b", sass)), 0),
    }
    if codes:
        stored = len(re.findall(r"\bSTG\S*\.64", sass))
        found["64-bit stores of codes"] = (stored, codes * PER_LANE // 8)
    faults = [f"{what}: expected {wanted}, got {got}" for what, (got, wanted) in found.items() if got != wanted]
    return faults + ([f"registers: {registers} > 64"] if registers > 64 else [])


def amd_faults(asm: dict[str, Any], reads: int, writes: int) -> list[str]:
    text = asm["amdgcn"]
    loads, stores = (len(re.findall(rf"\b(?:global|buffer)_{kind}_dwordx4\b", text)) for kind in ("load", "store"))
    wanted = [n * PER_LANE // 16 for n in (reads, writes)]
    faults = [
        f"128-bit {what}: expected at least {least}, got {got}"
        for what, got, least in (("loads", loads, wanted[0]), ("stores", stores, wanted[1]))
        if got < least
    ]
    faults += [f"spills: {n}" for n in re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text) if int(n)]
    if re.search(r"\bv_(?:add|mul|fma)_f64", text):
        faults.append("double-precision instructions")
    return faults


def main(name: str) -> int:
    cuda = name.startswith("sm_")
    target = GPUTarget("cuda", int(name[3:]), 32) if cuda else GPUTarget("hip", name, 64)
    faults = []
    for title, kernel, constants, reads, writes, codes in CASES:
        asm = compiled(kernel, constants, target)
        found = nvidia_faults(asm, reads, writes, codes) if cuda else amd_faults(asm, reads, writes)
        faults += [f"{name} {title}: {fault}" for fault in found]
    # What needs no figures must compile: doubles, rounding to nearest, float16, and the rows.
    kinds = {"P": tl.float64, "G": tl.float64, "M": tl.float64, "E": tl.float64}
    asm = compiled(adam_kernel, {**ADAM, **kinds, "AMSGRAD": True}, target, wide="fp64")
    compiled(sgd_kernel, {**SGD, "P": tl.float16, "G": tl.float16, "M": tl.float16, "MAXIMIZE": True}, target)
    compiled(adam_row_kernel, {**ROW, "DECOUPLED": True, "CAREFUL": False}, target)
    compiled(lion_row_kernel, {**ROW, "DECOUPLED": True, "CAREFUL": True}, target)
    compiled(schedule_free_row_kernel, ROW, target)
    compiled(sgd_row_kernel, {**ROW, "DECOUPLED": False}, target, wide="fp64")
    if cuda and not ("sqrt.rn.f64" in asm["ptx"] and "div.rn.f64" in asm["ptx"]):
        faults.append("adamw fp64: root or division is not rounded to nearest")
    print("\n".join(faults))
    return len(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
