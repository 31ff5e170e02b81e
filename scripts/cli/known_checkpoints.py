"""Public checkpoints of HRM, TRM and HRM-Text, as far as they are known, for `aios models known`.

Facts are those of model cards, papers and file listings, read on the date below. No checkpoint was
loaded here: this project's machines reach no hub. Loading one checks all names and shapes.
"""

from dataclasses import dataclass

from scripts.cli.colours import coloured

READ_ON = "2026-11-30"
UNKNOWN = "not seen"


@dataclass(frozen=True)
class Checkpoint:
    """A public checkpoint. `path` is what `--model-path` takes, and `flags` suit it.

    `licence` is UNKNOWN where no page that was read tells it. A size with "about" is computed from
    the number of parameters. `expect` quotes others, and `source` says whom.
    """

    path: str
    family: str
    licence: str
    size: str
    expect: str
    source: str
    flags: str = ""
    is_loaded_here: bool = False


CHECKPOINTS = (
    Checkpoint(
        "hf://sapientinc/HRM-Text-1B",
        family="HRM-Text",
        licence="Apache-2.0",
        size="about 2.4 GB",
        expect="GSM8K 84.7, MATH 56.5, MMLU 60.7; before alignment: no chat; 4,096 tokens",
        source="model card, README of HRM-Text",
        flags="--condition synth,cot --context-window 4096",
    ),
    Checkpoint(
        "hf://sapientinc/HRM-checkpoint-sudoku-extreme",
        family="HRM",
        licence=UNKNOWN,
        size="about 110 MB",
        expect="55 in 100 of Sudoku-Extreme (53 by a reproduction)",
        source="arXiv 2506.21734, card of ThomasHeim/HRM-Reproduction-Checkpoints",
    ),
    Checkpoint(
        "hf://sapientinc/HRM-checkpoint-maze-30x30-hard",
        family="HRM",
        licence=UNKNOWN,
        size="about 110 MB",
        expect="74 in 100 of Maze-Hard",
        source="arXiv 2506.21734",
    ),
    Checkpoint(
        "hf://sapientinc/HRM-checkpoint-ARC-2",
        family="HRM",
        licence=UNKNOWN,
        size="size not seen",
        expect="only ARC tasks that it was trained on, by their identifiers",
        source="README of HRM",
    ),
    Checkpoint(
        "hf://bnsh/HRM-checkpoint-sudoku-full",
        family="HRM",
        licence=UNKNOWN,
        size="about 110 MB",
        expect="97.3 in 100 of Sudoku-Extreme in 8 steps, 98.7 in 16",
        source="model card",
    ),
    Checkpoint(
        "hf://ThomasHeim/HRM-Reproduction-Checkpoints/sudoku-extreme/original-hrm",
        family="HRM",
        licence="Apache-2.0",
        size="20 checkpoints of about 110 MB, the last is served",
        expect="53 in 100 of Sudoku-Extreme",
        source="model card",
    ),
    Checkpoint(
        "hf://arcprize/trm_arc_prize_verification/arc_v1_public",
        family="TRM",
        licence="MIT",
        size="1.8 GB, nearly all of it embeddings of ARC tasks",
        expect="ARC-AGI-1: 40 in 100 by votes, 29 without; only tasks that it was trained on",
        source="model card and files",
    ),
    Checkpoint(
        "hf://arcprize/trm_arc_prize_verification/arc_v2_public",
        family="TRM",
        licence="MIT",
        size="2.5 GB, nearly all of it embeddings of ARC tasks",
        expect="ARC-AGI-2: 6.2 in 100 by votes; only tasks that it was trained on",
        source="model card and files",
    ),
    Checkpoint(
        "hf://Sanjin2024/TinyRecursiveModels-Sudoku-Extreme-mlp",
        family="TRM",
        licence=UNKNOWN,
        size="about 20 MB",
        expect="84.8 in 100 of Sudoku-Extreme",
        source="model card",
    ),
    Checkpoint(
        "hf://Sanjin2024/TinyRecursiveModels-Maze-Hard",
        family="TRM",
        licence=UNKNOWN,
        size="about 27 MB",
        expect="78.7 in 100 of Maze-Hard",
        source="model card",
    ),
    Checkpoint(
        "hf://Kaleemullah/trm-cgar-sudoku",
        family="TRM",
        licence=UNKNOWN,
        size="about 20 MB",
        expect="87.3 in 100 of Sudoku-Extreme; the form of its files was not seen",
        source="model card",
    ),
)


def lines() -> list[str]:
    """Return the lines that show all checkpoints to people."""
    shown = []
    for checkpoint in CHECKPOINTS:
        loaded = "loaded here" if checkpoint.is_loaded_here else "not loaded here"
        facts = (checkpoint.family, f"licence {checkpoint.licence}", checkpoint.size, loaded)
        shown += [
            coloured(checkpoint.path, bold=True),
            f"    {'; '.join(facts)}",
            f"    {checkpoint.expect} ({checkpoint.source})",
            f"    aios serve hrm --model-path {checkpoint.path} {checkpoint.flags}".rstrip(),
        ]
    shown.append(f"Read on {READ_ON}. Where no licence was seen, look for one before you use it.")
    return shown
