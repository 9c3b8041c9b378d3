"""Bundles on NVIDIA's Triton Inference Server: the repository that it serves, and the model that runs in its Python."""
