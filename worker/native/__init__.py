"""Kernels in C for CPUs, and the operators in torch that do the same without them."""
