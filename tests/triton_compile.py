"""Compile the Triton kernels of real calls for GPUs that need not be there; one line per kernel (see the test).

The interpreter forgives what the compiler refuses (a variable that changes its type in a loop, say).
usage: python triton_compile.py conv|block|small CAPABILITY
"""

from __future__ import annotations

import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsemask.backends import BlockCall, ConvCall
from sparsemask.backends.triton import BACKEND
from sparsemask.backends.triton import fused as triton_fused
from sparsemask.backends.triton import kernels as triton_kernels
from sparsemask.ops.geometry import Geometry

POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip


class Compiled:
    """Stands for a kernel: a launch compiles it for the types, alignments and constants that it was called with."""

    def __init__(self, kernel, capability: int):
        self.kernel, self.capability = getattr(kernel, "fn", kernel), capability
        self.config = kernel.configs[0] if hasattr(kernel, "configs") else None
        if isinstance(kernel, triton.JITFunction):
            self.kernel = kernel

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, enable_fp_fusion: bool, **named) -> None:
        options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": enable_fp_fusion}
        if self.config is not None:
            options |= {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages}
            named |= self.config.kwargs
        values = dict(zip(self.kernel.arg_names, args, strict=False)) | named
        assert values.keys() == set(self.kernel.arg_names)
        signature, constants, attributes = {}, {}, {}
        for param in self.kernel.params:
            value = values[param.name]
            free = param.do_not_specialize
            if param.is_constexpr or (value is None) or (isinstance(value, int) and value == 1 and not free):
                signature[param.name], constants[(param.num,)] = "constexpr", value
                continue
            signature[param.name] = POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            address = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if address % 16 == 0 and not free and not param.do_not_specialize_on_alignment:
                attributes[(param.num,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        done = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        ptx = done.asm["ptx"]
        products = len(re.findall(r"mma\.sync|wgmma\.mma_async", ptx))
        copies = len(re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", ptx))
        print(self.kernel.__name__, f"products={products} wide_copies={copies} shared={done.metadata.shared}")


def main() -> None:
    what, capability = sys.argv[1], int(sys.argv[2])
    for module in (triton_kernels, triton_fused):
        for name in ("partition", "conv_rows", "conv_small", "block_tail", "collect_dropped"):
            if hasattr(module, name):
                setattr(module, name, Compiled(getattr(module, name), capability))
    channels = 8 if what == "small" else 64
    x = torch.zeros(1, channels, 8, 8, dtype=torch.float16)
    mask, dense = torch.ones(1, 1, 8, 8, dtype=torch.bool), torch.ones(2, channels, dtype=torch.bool)
    weight = torch.zeros(channels, channels, 3, 3, dtype=x.dtype)
    if what == "block":
        collect = torch.zeros(channels, 2 * channels, 1, 1, dtype=x.dtype)
        BACKEND.block(BlockCall(x, mask, [weight, weight], dense, collect, x[0, :, 0, 0], "relu"))
    else:
        geometry = Geometry.of(2, 3, padding=1)
        bias = x[0, :, 0, 0]
        BACKEND.conv(ConvCall(x, weight, bias, mask, dense[0], dense[1], geometry, "leaky_relu:0.1"))


if __name__ == "__main__":
    main()
