"""The Sapient HRM network and its batches.

The oracle is the plain reference of `sapient_fixtures`.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.fixtures.worker.sapient_fixtures import Net, Weights, random_weights, reference
from worker.models.errors import ModelFormatError
from worker.models.sapient import Carry, SapientConfig, SapientModel

SMALL = Net(cells=7)
NETS = {
    "rotary": SMALL,
    "rotary without puzzle embedding": replace(SMALL, puzzle_ndim=0),
    "learned, embedding of two positions, padded": replace(SMALL, learned=True, puzzle_ndim=24),
    "learned without puzzle embedding": replace(SMALL, learned=True, puzzle_ndim=0),
}
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
CELLS = [[5, 9, 2, 1, 0, 10, 7], [1, 1, 1, 1, 1, 1, 1], [3, 0, 4, 10, 8, 2, 6]]


def config_of(net: Net) -> SapientConfig:
    return SapientConfig(
        vocab_size=net.vocab,
        seq_len=net.cells,
        hidden_size=net.hidden,
        intermediate_size=net.intermediate,
        num_heads=net.heads,
        h_layers=net.h_layers,
        l_layers=net.l_layers,
        h_cycles=net.h_cycles,
        l_cycles=net.l_cycles,
        halt_max_steps=net.halt_max_steps,
        puzzle_emb_ndim=net.puzzle_ndim,
        num_identifiers=net.identifiers if net.puzzle_ndim else 1,
        pos_encoding="learned" if net.learned else "rope",
    )


def model_of(net: Net, weights: Weights) -> SapientModel:
    model = SapientModel(config_of(net))
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


Row = tuple[Tensor | float, ...]
"""Logits [cells, vocab], q_halt and q_continue of one puzzle."""


def run(
    model: SapientModel, cells: list[list[int]], identifiers: list[int], segments: int
) -> list[Row]:
    """Run the puzzles as one batch."""
    carry = model.initial_carry(len(cells))
    for _ in range(segments):
        out = model.forward_segment(torch.tensor(cells), torch.tensor(identifiers), carry)
        carry = out.carry
    return list(zip(model.logits(carry.z_h), out.q_halt, out.q_continue, strict=True))


def run_one(model: SapientModel, cells: list[int], identifier: int, segments: int) -> Row:
    [row] = run(model, [cells], [identifier], segments)
    return row


def close(row: Row, other: Row, tolerance: float = 1e-5) -> bool:
    for value, other_value in zip(row, other, strict=True):
        number = torch.as_tensor(value).double()
        other_number = torch.as_tensor(other_value).double()
        if not torch.allclose(number, other_number, rtol=0, atol=tolerance):
            return False
    return True


@each_net
@pytest.mark.parametrize(("segments", "tolerance"), [(1, 1e-5), (3, 1e-4)])
def test_equals_the_reference(net: Net, segments: int, tolerance: float) -> None:
    """The network obeys the published formulas, in each segment over the carry of the last.

    Section 2 of the format notes has them. The rounding of fp32 grows with the segments.
    """
    weights = random_weights(net)
    identifier = 2 if net.puzzle_ndim else 0

    row = run_one(model_of(net, weights), CELLS[0], identifier, segments)

    expected = reference(weights, net, CELLS[0], identifier, segments)[-1]
    assert expected[0].std() > 0.3
    assert close(row, expected, tolerance)


def test_reference_can_tell_networks_apart() -> None:
    """A broken rule moves the reference far beyond the tolerance of the test above."""
    weights = random_weights(SMALL)
    right = reference(weights, SMALL, CELLS[0], 1, 2)[-1]
    broken = [
        reference(weights, SMALL, CELLS[0], 1, 2, reset_l=True)[-1],
        reference(weights, SMALL, CELLS[0], 1, 1)[-1],
        reference(weights, SMALL, CELLS[0], 2, 2)[-1],
        reference(weights, replace(SMALL, heads=4), CELLS[0], 1, 2)[-1],
        reference(weights, replace(SMALL, h_cycles=3, l_cycles=2), CELLS[0], 1, 2)[-1],
        reference(weights, SMALL, CELLS[0][::-1], 1, 2)[-1],
    ]
    for wrong in broken:
        assert not close(wrong, right, 1e-2)

    learned = replace(SMALL, learned=True)
    with_positions = random_weights(learned)
    without_positions = dict(with_positions)
    for name in with_positions:
        if name.startswith("embed_pos"):
            without_positions[name] = with_positions[name] * 0
    right = reference(with_positions, learned, CELLS[0])[0]
    wrong = reference(without_positions, learned, CELLS[0])[0]
    assert not close(right, wrong, 1e-2)


@each_net
def test_batched_equals_single(net: Net) -> None:
    """Style 14: A puzzle has the same logits and q values in a batch of eight as alone."""
    model = model_of(net, random_weights(net))
    puzzles = []
    for shift in range(7):
        cells = CELLS[shift % 3]
        puzzles.append(cells[shift:] + cells[:shift])
    puzzles.append(CELLS[1])
    identifiers = [0, 1, 2, 0, 1, 2, 0, 1] if net.puzzle_ndim else [0] * 8

    together = run(model, puzzles, identifiers, 2)

    for row, puzzle, identifier in zip(together, puzzles, identifiers, strict=True):
        assert close(row, run_one(model, puzzle, identifier, 2))


def test_rows_of_a_batch_may_be_at_different_segments() -> None:
    """A row in its second segment and a row in its first share a batch, and change nothing.

    A batch is refilled on that ground.
    """
    model = model_of(SMALL, random_weights(SMALL))
    ids = torch.tensor(CELLS[:2])
    identifiers = torch.tensor([1, 2])
    first = model.forward_segment(ids[:1], identifiers[:1], model.initial_carry(1))
    fresh = model.initial_carry(1)
    carry = Carry(
        z_h=torch.cat([first.carry.z_h, fresh.z_h]),
        z_l=torch.cat([first.carry.z_l, fresh.z_l]),
    )

    out = model.forward_segment(ids, identifiers, carry)

    logits = model.logits(out.carry.z_h)
    assert close((logits[0], out.q_halt[0]), run_one(model, CELLS[0], 1, segments=2)[:2])
    assert close((logits[1], out.q_halt[1]), run_one(model, CELLS[1], 2, segments=1)[:2])


def test_impossible_sizes_are_refused() -> None:
    """A number of heads is refused if it leaves a rest or an odd head size."""
    for heads, message in ((5, "does not divide into 5 heads"), (16, "even head size, not 1")):
        with pytest.raises(ModelFormatError, match=message):
            config_of(replace(SMALL, heads=heads))
