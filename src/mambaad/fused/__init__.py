"""What surrounds the scan in a block, in as few GPU kernels as reason allows.

Each file is one operation with two homes: plain torch, which is its definition, and one or two
Triton kernels for CUDA tensors. Feature maps are channels last, (B, H, W, C).
"""
