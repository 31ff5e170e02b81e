"""`aios lm-eval`: lm-evaluation-harness with a fleet as its model."""
