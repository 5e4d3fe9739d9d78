"""The GPU pass, in Triton. Nothing here is imported before a tensor on a CUDA device is met."""
