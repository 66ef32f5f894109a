"""Compile the Triton kernels without a card, and print of each a JSON line: shared memory, and whether it uses tensor cores.

    python compile_triton.py "[CAPABILITY, DIM, ITEMSIZE, ROWS]" ...

Attention is compiled for the committed configurations named so, with all that can be asked of it at once. To be run in a
process without TRITON_INTERPRET: there, kernels are the interpreter's, which compiles nothing.
"""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from forethought.kernels import triton_kernels
from forethought.kernels.tuning import Config, tunings

KINDS = {"tree_ptr": "*i64", "slots_ptr": "*i32", "lse_ptr": "*fp32", "partial_ptr": "*fp32", "partial_lse_ptr": "*fp32"}
FLOATS = ("scale", "softcap", "eps")


def compiled(kernel, capability, kinds, constants, config=None):
    """``kinds``: the types of those pointers that are not int32 or in KINDS."""
    kinds, signature, aligned = KINDS | kinds, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = kinds.get(name, "*i32")
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
        if signature[name] not in ("constexpr", "fp32") and name != "first_item":
            aligned[(i,)] = [["tt.divisibility", 16]]
    options = {} if config is None else {"num_warps": config.warps, "num_stages": config.stages}
    source = ASTSource(kernel, signature, constants, aligned)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = done.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "capability": capability,
        "itemsize": config and config.itemsize,
        "shared": done.metadata.shared,
        "tensor cores": "mma.sync" in ptx or "wgmma" in ptx,
    }


def attention(capability, config: Config):
    constants = {
        "HEADS": 32, "KV_HEADS": 8, "DIM": config.dim, "DIM_V": config.dim, "WIDE": config.dim, "WIDE_V": config.dim,
        "ROWS": config.rows, "BLOCK": config.block, "MASKED": True, "STORED": True, "TREE": True, "SOFTCAP": True,
        "PARTIAL": True, "SINKS": False, "LSE": True, "TURNED": True, "INTERLEAVED": False, "HALF": config.dim // 2,
    }  # fmt: skip
    kinds = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), {2: "*bf16", 4: "*fp32"}[config.itemsize])
    kinds |= dict.fromkeys(("out_ptr", "cos_ptr", "sin_ptr", "sinks_ptr"), "*fp32")
    return compiled(triton_kernels.attend_items, capability, kinds, constants, config)


def merge(capability):
    constants = {"HEADS": 32, "DIM_V": 256, "WIDE_V": 256, "BLOCK": 8, "SINKS": True, "LSE": True}
    return compiled(triton_kernels.merge_pairs, capability, {"out_ptr": "*bf16", "sinks_ptr": "*bf16"}, constants)


def write(capability):
    pointers = ("qkv_ptr", "cos_ptr", "sin_ptr", "q_ptr", "k_ptr", "v_ptr", "q_norm_ptr", "k_norm_ptr")
    constants = {"HEADS": 32, "KV_HEADS": 8, "AT_ONCE": 4, "NORMED": True, "INTERLEAVED": False}
    constants |= dict.fromkeys(("DIM", "WIDE", "WIDTH"), 128)
    kinds = dict.fromkeys(pointers, "*bf16") | {"slots_ptr": "*i64"}
    return compiled(triton_kernels.write_tokens, capability, kinds, constants)


if __name__ == "__main__":
    asked = {tuple(json.loads(argument)) for argument in sys.argv[1:]}
    for tuning in tunings():
        capability = 10 * tuning.capability[0] + tuning.capability[1]
        configs = [c for c in tuning.configs if (capability, c.dim, c.itemsize, c.rows) in asked]
        for config in configs:
            print(json.dumps(attention(capability, config)))
        if configs:
            print(json.dumps(merge(capability)))
            print(json.dumps(write(capability)))
