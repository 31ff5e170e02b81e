"""The Sapient HRM network against the plain reference of `sapient_fixtures`, and what its batches
promise."""

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


def config_of(net: Net, **other: int) -> SapientConfig:
    sizes = {
        "vocab_size": net.vocab,
        "seq_len": net.cells,
        "hidden_size": net.hidden,
        "intermediate_size": net.intermediate,
        "num_heads": net.heads,
        "h_layers": net.h_layers,
        "l_layers": net.l_layers,
        "h_cycles": net.h_cycles,
        "l_cycles": net.l_cycles,
        "halt_max_steps": net.halt_max_steps,
        "puzzle_emb_ndim": net.puzzle_ndim,
        "num_identifiers": net.identifiers if net.puzzle_ndim else 1,
    }
    return SapientConfig(**{**sizes, **other}, pos_encoding="learned" if net.learned else "rope")  # type: ignore[arg-type]


def model_of(net: Net, weights: Weights) -> SapientModel:
    model = SapientModel(config_of(net))
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


def run(
    model: SapientModel, cells: list[list[int]], identifiers: list[int], segments: int
) -> list[tuple[Tensor, ...]]:
    """Logits [cells, vocab], q_halt and q_continue of each row, run as one batch."""
    carry = model.initial_carry(len(cells))
    for _ in range(segments):
        out = model.forward_segment(torch.tensor(cells), torch.tensor(identifiers), carry)
        carry = out.carry
    return list(zip(model.logits(carry.z_h), out.q_halt, out.q_continue, strict=True))


def close(
    one: tuple[Tensor | float, ...], other: tuple[Tensor | float, ...], tolerance: float = 1e-5
) -> bool:
    pairs = (
        (torch.as_tensor(a).double(), torch.as_tensor(b).double())
        for a, b in zip(one, other, strict=True)
    )
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in pairs)


@each_net
@pytest.mark.parametrize(("segments", "tolerance"), [(1, 1e-5), (3, 1e-4)])
def test_equals_the_reference(net: Net, segments: int, tolerance: float) -> None:
    """Format notes section 2: the published formulas, and the carry goes on; fp32 rounding grows
    with the segments."""
    weights = random_weights(net)
    identifier = 2 if net.puzzle_ndim else 0
    expected = reference(weights, net, CELLS[0], identifier, segments)[-1]
    assert expected[0].std() > 0.3
    assert close(
        run(model_of(net, weights), [CELLS[0]], [identifier], segments)[0], expected, tolerance
    )


def test_reference_can_tell_networks_apart() -> None:
    """Guards the test above: each rule, when broken, moves the reference far beyond the
    tolerance."""
    weights = random_weights(SMALL)
    right = reference(weights, SMALL, CELLS[0], 1, 2)[-1]
    wrong = [
        reference(weights, SMALL, CELLS[0], 1, 2, reset_l=True)[-1],
        reference(weights, SMALL, CELLS[0], 1, 1)[-1],
        reference(weights, SMALL, CELLS[0], 2, 2)[-1],
        reference(weights, replace(SMALL, heads=4), CELLS[0], 1, 2)[-1],
        reference(weights, replace(SMALL, h_cycles=3, l_cycles=2), CELLS[0], 1, 2)[-1],
        reference(weights, SMALL, CELLS[0][::-1], 1, 2)[-1],
    ]
    assert not any(close(other, right, 1e-2) for other in wrong)
    bare = replace(SMALL, learned=True)
    moved = random_weights(bare)
    still = {
        name: tensor * 0 if name.startswith("embed_pos") else tensor
        for name, tensor in moved.items()
    }
    assert not close(reference(moved, bare, CELLS[0])[0], reference(still, bare, CELLS[0])[0], 1e-2)


@each_net
def test_batched_equals_single(net: Net) -> None:
    """Style 14: a row says in a batch of eight what it says alone."""
    model = model_of(net, random_weights(net))
    rows = [CELLS[at % 3][at:] + CELLS[at % 3][:at] for at in range(7)] + [CELLS[1]]
    identifiers = [at % 3 if net.puzzle_ndim else 0 for at in range(8)]
    together = run(model, rows, identifiers, 2)
    alone = [
        run(model, [row], [number], 2)[0] for row, number in zip(rows, identifiers, strict=True)
    ]
    assert all(close(a, b) for a, b in zip(together, alone, strict=True))


def test_rows_of_a_batch_may_be_at_different_segments() -> None:
    """What refilling stands on: one row in its second segment beside one in its first."""
    model = model_of(SMALL, random_weights(SMALL))
    ids = torch.tensor(CELLS[:2])
    numbers = torch.tensor([1, 2])
    first = model.forward_segment(ids[:1], numbers[:1], model.initial_carry(1))
    pairs = zip(first.carry, model.initial_carry(1), strict=True)
    out = model.forward_segment(ids, numbers, Carry(*(torch.cat(pair) for pair in pairs)))
    logits = model.logits(out.carry.z_h)
    assert close((logits[0], out.q_halt[0]), run(model, CELLS[:1], [1], 2)[0][:2])
    assert close((logits[1], out.q_halt[1]), run(model, CELLS[1:2], [2], 1)[0][:2])


def test_impossible_sizes_are_refused() -> None:
    for heads, message in ((5, "does not divide into 5 heads"), (16, "even head size, not 1")):
        with pytest.raises(ModelFormatError, match=message):
            config_of(SMALL, num_heads=heads)
