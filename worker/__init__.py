"""The worker: it speaks tokens and tensors, owns models, and knows nothing of HTTP."""
