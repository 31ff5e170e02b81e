"""`aios puzzles solve`: the formats of files, the solvers, and the output that a run goes on from."""
