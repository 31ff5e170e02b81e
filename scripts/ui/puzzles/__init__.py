"""The kinds of puzzles on the page *Puzzles*: how they are written, drawn and solved.

`grid_kind.py` says what a puzzle on one grid is, `sudoku.py` and `maze.py` are two of them, and
`solving.py` shows how a network fills one in. An ARC task has several grids: `arc_task.py` is its
text, `arc.py` its part of the page.
"""
