"""The engine of Triton's kernels for cells alone on CUDA in float32."""
