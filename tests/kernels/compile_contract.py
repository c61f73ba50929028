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

from shaped_kernels.adam import AdamRule
from shaped_kernels.cautious_triton import agree_kernel
from shaped_kernels.launch_triton import options
from shaped_kernels.lion import LionRule
from shaped_kernels.muon import MuonRule
from shaped_kernels.muon_triton import ahead_kernel
from shaped_kernels.rows_triton import row_kernel
from shaped_kernels.rule import Rule
from shaped_kernels.schedule_free import ScheduleFreeRule
from shaped_kernels.sgd import SgdRule
from shaped_kernels.table_triton import squares_kernel, table_kernel
from shaped_kernels.tables import BLOCK

PER_LANE = 8  # elements: BLOCK over 4 warps of 32 lanes, or 2 of 64
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
PLAIN: dict[str, Any] = {
    **{"P": tl.float32, "G": tl.float32, "M": tl.float32, "E": tl.float32, "BLOCK": BLOCK, "STORE": 0},
    **{"SCALED": False, "GUARDED": False, "EMA": False, "ZERO": False},
}
ADAMW, ADAM8 = AdamRule(True), AdamRule(True, eight_bit=True)
SGD, MOMENTUM = SgdRule(), SgdRule(nesterov=True, buffered=True)
LION8 = LionRule(eight_bit=True)
LION, FREE, MUON = LionRule(), ScheduleFreeRule(), MuonRule()
CAUTIOUS = AdamRule(True, cautious=True)
FULL = {"SCALED": True, "GUARDED": True, "EMA": True, "ZERO": True}
NARROW = {"P": tl.bfloat16, "G": tl.bfloat16}
SPLIT = {"P": tl.uint16, "G": tl.bfloat16, "STORE": 2}
# name, rule, what else it is compiled for; on the fast path: bytes read and written per element in accesses of 128
# bits, and the bytes of 8-bit codes, whose 8 elements a lane are 64 bits
CASES: list[tuple[str, Rule | None, dict[str, Any], int, int, int]] = [
    ("adamw fp32", ADAMW, {}, 16, 12, 0),
    ("adamw fp32, all fused", ADAMW, FULL, 20, 20, 0),
    ("adam amsgrad fp32", AdamRule(amsgrad=True), {}, 20, 16, 0),
    ("adamw bf16", ADAMW, {**NARROW, "M": tl.bfloat16}, 8, 6, 0),
    ("adamw bf16 stochastic", ADAMW, {**NARROW, "M": tl.bfloat16, "STORE": 1}, 8, 6, 0),
    ("adamw bf16 stochastic, fp32 moments", ADAMW, {**NARROW, "STORE": 1}, 12, 10, 0),
    ("adamw split", ADAMW, SPLIT, 14, 12, 0),
    ("adamw 8-bit, bf16 stochastic", ADAM8, {**NARROW, "STORE": 1}, 4, 2, 2),
    ("adamw 8-bit, split, clipped", ADAM8, {**SPLIT, "SCALED": True}, 6, 4, 2),
    ("sgd fp32", SGD, {}, 8, 4, 0),
    ("sgd momentum fp32", MOMENTUM, {}, 12, 8, 0),
    ("sgd momentum fp32, all fused", MOMENTUM, FULL, 16, 16, 0),
    ("sgd momentum split", MOMENTUM, SPLIT, 10, 8, 0),
    ("adamw fp32, cautious decay", AdamRule(True, cautious_decay=True), {}, 16, 12, 0),
    ("sgd fp32, decay apart", SgdRule(decoupled_weight_decay=True), {}, 8, 4, 0),
    ("lion fp32", LION, {}, 12, 8, 0),
    ("lion fp32, all fused, cautious decay", LionRule(cautious_decay=True), FULL, 16, 16, 0),
    ("lion bf16 stochastic", LION, {**NARROW, "M": tl.bfloat16, "STORE": 1}, 6, 4, 0),
    ("lion split", LION, SPLIT, 10, 8, 0),
    ("lion 8-bit, bf16 stochastic", LION8, {**NARROW, "STORE": 1}, 4, 2, 1),
    ("lion 8-bit, split, clipped", LION8, {**SPLIT, "SCALED": True}, 6, 4, 1),
    ("adamw fp32, cautious", CAUTIOUS, {}, 16, 12, 0),
    ("adamw bf16, cautious", CAUTIOUS, {**NARROW, "M": tl.bfloat16}, 8, 6, 0),
    ("adamw bf16 stochastic, cautious", CAUTIOUS, {**NARROW, "M": tl.bfloat16, "STORE": 1}, 8, 6, 0),
    ("adamw split, cautious", CAUTIOUS, SPLIT, 14, 12, 0),
    ("adamw fp32, all fused, cautious", CAUTIOUS, FULL, 20, 20, 0),
    ("lion bf16 stochastic, cautious", LionRule(cautious=True), {**NARROW, "M": tl.bfloat16, "STORE": 1}, 6, 4, 0),
    ("lion fp32, all fused, cautious", LionRule(cautious=True), FULL, 16, 16, 0),
    ("muon fp32", MUON, {}, 16, 8, 0),
    ("muon fp32, all fused", MUON, FULL, 20, 16, 0),
    ("muon bf16 stochastic", MUON, {**NARROW, "M": tl.bfloat16, "STORE": 1}, 10, 4, 0),
    ("muon split", MUON, SPLIT, 14, 8, 0),
    ("schedule-free fp32", FREE, {}, 16, 12, 0),
    ("schedule-free fp32, all fused", FREE, FULL, 20, 20, 0),
    ("schedule-free split", FREE, SPLIT, 14, 12, 0),
    ("gradient norm fp32", None, {"G": tl.float32, "BLOCK": BLOCK}, 4, 0, 0),
    ("gradient norm bf16", None, {"G": tl.bfloat16, "BLOCK": BLOCK}, 2, 0, 0),
]
AROUND = {"CLIP": True, "GUARD": True, "SCALE": True, "FOUND": True, "ADVANCE": True}
TYPES = {"addresses": "*i64", "chunks": "*i64", "n_tensors": "i32", "n_chunks": "i32", "n_partials": "i32"}
TYPES |= {"hypers": "*fp64", "step_ptr": "*fp32", "scale_ptr": "*fp32", "found_ptr": "*fp32"}


def moved(rule: Rule, constants: dict[str, Any], target: GPUTarget, wide: str = "fp32") -> dict[str, Any]:
    """The kernel that moves a rule's tensors."""
    own = {"CHUNK": rule.kernels().chunk, "SWITCHES": rule.kernels().switches}
    return compiled(table_kernel, {**PLAIN, **own, **constants}, target, wide)


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


def nvidia_faults(asm: dict[str, Any], reads: int, writes: int, codes: int, most: int = 64) -> list[str]:
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
    return faults + ([f"registers: {registers} > {most}"] if registers > most else [])


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
    for title, rule, constants, reads, writes, codes in CASES:
        asm = compiled(squares_kernel, constants, target) if rule is None else moved(rule, constants, target)
        most = 72 if rule == CAUTIOUS else 64  # seven groups resident, not eight
        found = nvidia_faults(asm, reads, writes, codes, most) if cuda else amd_faults(asm, reads, writes)
        faults += [f"{name} {title}: {fault}" for fault in found]
    counted = (("adamw", CAUTIOUS, 12, 4), ("lion", LionRule(cautious=True), 8, 3))
    for title, rule, reads, low in counted:
        own = {"COUNT": rule.kernels().agrees, "SWITCHES": rule.kernels().switches, "LOW": low, "ROLE": low}
        kinds = {name: PLAIN[name] for name in ("P", "G", "M", "SCALED", "STORE", "BLOCK")}
        asm = compiled(agree_kernel, {**kinds, **own}, target)
        found = nvidia_faults(asm, reads, 0, 0) if cuda else amd_faults(asm, reads, 0)
        faults += [f"{name} {title}, those that agree: {fault}" for fault in found]
    for title, kinds, reads in (
        ("fp32", {"G": tl.float32, "M": tl.float32}, 8),
        ("bf16", {"G": tl.bfloat16, "M": tl.bfloat16}, 4),
    ):
        own = {"AHEAD": MUON.kernels().ahead, "SWITCHES": MUON.kernels().switches, "SCALED": True, "ROLE": 3}
        asm = compiled(ahead_kernel, {**kinds, **own, "BLOCK": BLOCK}, target)
        found = nvidia_faults(asm, reads, 4, 0) if cuda else amd_faults(asm, reads, 4)
        faults += [f"{name} muon {title}, where momentum leads: {fault}" for fault in found]
    # What needs no figures must compile: doubles, rounding to nearest, float16, and the rows.
    kinds = {"P": tl.float64, "G": tl.float64, "M": tl.float64, "E": tl.float64}
    asm = moved(AdamRule(True, amsgrad=True), kinds, target, wide="fp64")
    half = {"P": tl.float16, "G": tl.float16, "M": tl.float16}
    moved(SgdRule(nesterov=True, buffered=True, maximize=True), half, target)
    for rule, wide in (
        (ADAMW, "fp32"),
        (LionRule(cautious_decay=True), "fp32"),
        (FREE, "fp32"),
        (MUON, "fp32"),
        (SGD, "fp64"),
    ):
        kernels = rule.kernels()
        compiled(row_kernel, {**AROUND, "ROW": kernels.row, "SWITCHES": kernels.switches}, target, wide=wide)
    if cuda and not ("sqrt.rn.f64" in asm["ptx"] and "div.rn.f64" in asm["ptx"]):
        faults.append("adamw fp64: root or division is not rounded to nearest")
    print("\n".join(faults))
    return len(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
