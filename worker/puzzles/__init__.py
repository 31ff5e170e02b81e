"""Puzzles: grids as tokens, tokens as grids, and checks of solutions. Plain Python."""
