"""Without a GPU, Triton's kernels are interpreted: it asks when a kernel is defined, so this comes
before all tests."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
