"""Compile the scan's Triton kernels for an H200; a program, since tests have them interpreted.

The interpreter lets pass what the compiler refuses, such as a name of two types. No GPU is needed.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mambaad.scan import cuda_backward, cuda_forward

SMALL = {"R": 4, "N": 8, "T": 2, "U": 2, "EVEN": False}
KERNELS = {
    "forward": (cuda_forward.forward_kernel, {**SMALL, "SAVE": True}),
    "summary": (cuda_forward.summary_kernel, {**SMALL, "REVERSE": True}),
    "backward": (cuda_backward.backward_kernel, {**SMALL, "V": 2, "FUSED": True}),
}
WIDE = {"a_log", "dt_weight", "dt_bias", "skip", "ends", "sums", "saved", "below", "kept"}
WIDE |= {"sums_a", "parameters"}
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}
NARROW = {"x", "dy", "proj", "source", "planes", "rows", "dz_out"}


def type_of(name: str) -> str:
    """An argument's type, as Triton writes it."""
    if name in WIDE | NARROW:
        return "*fp32" if name in WIDE else "*bf16"
    return "*i32" if name == "orders" else "i32"


def compile_kernel(kernel: Any, constants: dict[str, Any]) -> int:
    """Bytes of machine code."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else type_of(n) for n in names}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=OPTIONS)
    return len(compiled.asm["cubin"])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, compile_kernel(*KERNELS[name]))
