"""The recurrent puzzle networks and their batches.

The oracle is the plain reference of `tests.fixtures.worker.puzzle_nets`, in numpy.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fixtures.worker.puzzle_nets import (
    Net,
    Step,
    Weights,
    as_arrays,
    embedded,
    initial,
    one_segment,
    random_weights,
    read_out,
    reference,
)
from worker.models.errors import ModelFormatError
from worker.models.linear import pack_all_linears
from worker.models.puzzle_net import MODELS, PuzzleNetConfig, RecurrentPuzzleModel
from worker.native.library import library

SMALL = Net(cells=7)
TRM = replace(SMALL, family="trm", l_layers=2, prefix=3)
# A width that the kernels take, as all real ones are.
URM = replace(SMALL, family="urm", l_layers=2, intermediate=32)
NETS = {
    "hrm, rotary": SMALL,
    "hrm, rotary without puzzle embedding": replace(SMALL, puzzle_ndim=0),
    "hrm, learned, embedding of two positions, padded": replace(
        SMALL, positions="learned", puzzle_ndim=24
    ),
    "hrm, learned without puzzle embedding": replace(SMALL, positions="learned", puzzle_ndim=0),
    "trm, rotary": TRM,
    "trm, rotary, prefix of one": replace(TRM, prefix=1),
    "trm, rotary, prefix of sixteen, half an embedding": replace(TRM, prefix=16, puzzle_ndim=8),
    "trm, rotary without puzzle embedding": replace(TRM, prefix=None, puzzle_ndim=0),
    "trm, learned": replace(TRM, positions="learned"),
    "trm, no positions": replace(TRM, positions="none"),
    "trm, mixing": replace(TRM, positions="none", mixing=20),
    "trm, mixing, learned": replace(TRM, positions="learned", mixing=20),
    "trm, mixing, rotary in name only": replace(TRM, mixing=20, prefix=16),
    "trm, mixing without puzzle embedding": replace(TRM, prefix=None, puzzle_ndim=0, mixing=20),
    "urm": URM,
    "urm, embedding of two positions, padded": replace(URM, puzzle_ndim=24),
    "urm without puzzle embedding": replace(URM, puzzle_ndim=0),
}
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
CELLS = [[5, 9, 2, 1, 0, 10, 7], [1, 1, 1, 1, 1, 1, 1], [3, 0, 4, 10, 8, 2, 6]]


def config_of(net: Net) -> PuzzleNetConfig:
    return PuzzleNetConfig(
        family=net.family,
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
        puzzle_emb_len=net.slots,
        num_identifiers=net.identifiers if net.puzzle_ndim else 1,
        pos_encoding=net.positions,
        mixing_size=net.mixing,
        halts_over_zero=net.family != "hrm",
    )


def model_of(net: Net, weights: Weights) -> RecurrentPuzzleModel:
    weights = dict(weights)
    model = MODELS[net.family](config_of(net))
    model.puzzle_table = weights.pop("puzzle_emb.weights", None)
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


Row = tuple[Tensor | float, ...] | Step
"""Logits [cells, vocab], q_halt and q_continue of one puzzle."""


def run(
    model: RecurrentPuzzleModel, cells: list[list[int]], identifiers: list[int], segments: int
) -> list[Row]:
    """Run the puzzles as one batch."""
    carry = model.start(len(cells))
    for _ in range(segments):
        x = model.embed(torch.tensor(cells), torch.tensor(identifiers))
        carry = model.segment(x, carry)
    return rows_of(model, carry)


def rows_of(model: RecurrentPuzzleModel, carry: Tensor) -> list[Row]:
    return list(zip(model.logits(carry), *model.q_values(carry), strict=True))


def run_one(model: RecurrentPuzzleModel, cells: list[int], identifier: int, segments: int) -> Row:
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
def test_equals_the_reference(net: Net) -> None:
    """The network obeys the published formulas, to 1e-5 in each of three segments.

    Each segment begins at the reference's carry: random networks amplify the rounding of fp32. Where
    MLPs mix positions they do so within one segment, so a segment has one cycle here.
    """
    if net.mixing:
        net = replace(net, h_cycles=1, l_cycles=1)
    weights = random_weights(net)
    arrays = as_arrays(weights)
    identifier = 2 if net.puzzle_ndim else 0
    model = model_of(net, weights)
    x = embedded(arrays, net, CELLS[0], identifier)
    latents = initial(arrays, net)
    assert close((model.start(1)[0],), (np.stack(latents),), 1e-6)

    for _ in range(3):
        carry = torch.from_numpy(np.stack(latents)).float()[None]
        latents = one_segment(arrays, net, x, latents)
        inputs = model.embed(torch.tensor(CELLS[:1]), torch.tensor([identifier]))
        [row] = rows_of(model, model.segment(inputs, carry))

        expected = read_out(arrays, net, latents)
        assert expected[0].std() > 0.3
        assert close(row, expected, 1e-5)


@each_net
def test_segments_follow_each_other(net: Net) -> None:
    """Three segments from the start are the reference's three, here in fp64."""
    weights = {name: tensor.double() for name, tensor in random_weights(net).items()}
    identifier = 2 if net.puzzle_ndim else 0

    row = run_one(model_of(net, weights).double(), CELLS[0], identifier, 3)

    assert close(row, reference(weights, net, CELLS[0], identifier, 3)[-1], 1e-6)


@pytest.mark.parametrize("net", [SMALL, TRM, replace(TRM, mixing=20), URM])
def test_reference_can_tell_networks_apart(net: Net) -> None:
    """A broken rule moves the reference a hundred times the tolerance of the tests above."""
    weights = random_weights(net)
    right = reference(weights, net, CELLS[0], 1, 2)[-1]
    broken = [
        reference(weights, net, CELLS[0], 1, 1)[-1],
        reference(weights, net, CELLS[0], 2, 2)[-1],
        reference(weights, replace(net, h_cycles=3, l_cycles=3), CELLS[0], 1, 2)[-1],
        reference(weights, net, CELLS[0][::-1], 1, 2)[-1],
    ]
    if net.family != "urm":
        broken.append(reference(weights, net, CELLS[0], 1, 2, reset_l=True)[-1])
        broken.append(reference(weights, replace(net, h_cycles=3, l_cycles=2), CELLS[0], 1, 2)[-1])
    if not net.mixing:
        broken.append(reference(weights, replace(net, heads=4), CELLS[0], 1, 2)[-1])
        broken.append(reference(weights, replace(net, positions="none"), CELLS[0], 1, 2)[-1])
    for wrong in broken:
        assert not close(wrong, right, 1e-3)

    learned = replace(net, positions="learned")
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
    """Style 14: A puzzle has the same logits and q values in a batch of eight as alone.

    With all products in panels, where there are kernels, they are the same bits.
    """
    model = model_of(net, random_weights(net))
    pack_all_linears(model)
    puzzles = []
    for shift in range(7):
        cells = CELLS[shift % 3]
        puzzles.append(cells[shift:] + cells[:shift])
    puzzles.append(CELLS[1])
    identifiers = [0, 1, 2, 0, 1, 2, 0, 1] if net.puzzle_ndim else [0] * 8

    tolerance = 1e-4 if library() is None else 0.0
    together = run(model, puzzles, identifiers, 2)

    for row, puzzle, identifier in zip(together, puzzles, identifiers, strict=True):
        assert close(row, run_one(model, puzzle, identifier, 2), tolerance)


@pytest.mark.parametrize("net", [SMALL, replace(TRM, mixing=20), URM])
def test_rows_of_a_batch_may_be_at_different_segments(net: Net) -> None:
    """A row in its second segment and a row in its first share a batch, and change nothing.

    A batch is refilled on that ground.
    """
    model = model_of(net, random_weights(net))
    ids = torch.tensor(CELLS[:2])
    identifiers = torch.tensor([1, 2])
    first = model.segment(model.embed(ids[:1], identifiers[:1]), model.start(1))
    carry = torch.cat([first, model.start(1)])

    carry = model.segment(model.embed(ids, identifiers), carry)

    second_segment, first_segment = rows_of(model, carry)
    assert close(second_segment, run_one(model, CELLS[0], 1, segments=2), 1e-4)
    assert close(first_segment, run_one(model, CELLS[1], 2, segments=1))


def test_who_wants_to_halt() -> None:
    """TRM and URM halt where q_halt is over zero, HRM where it exceeds q_continue.

    TRM's q_continue has no loss and stays near -5, so by HRM's rule nearly all rows would halt.
    """
    q_halt = torch.tensor([-3.0, 0.5, -6.0, 2.0])
    q_continue = torch.tensor([-5.0, -5.0, -5.0, 3.0])
    by_zero = model_of(TRM, random_weights(TRM)).wants_halt(q_halt, q_continue)
    by_both = model_of(SMALL, random_weights(SMALL)).wants_halt(q_halt, q_continue)
    assert by_zero.tolist() == [False, True, False, True]
    assert by_both.tolist() == [True, True, False, False]


def test_the_puzzle_table_stays_as_it_is() -> None:
    """Only rows of the table are converted, and the network does not count it as its own."""
    weights = random_weights(TRM)
    model = model_of(TRM, weights).bfloat16()
    assert model.puzzle_table is weights["puzzle_emb.weights"]
    assert model.puzzle_table.dtype == torch.float32
    x = model.embed(torch.tensor(CELLS[:1]), torch.tensor([1]))
    assert x.dtype == torch.bfloat16
    assert "puzzle_emb.weights" not in model.state_dict()


def test_published_sizes() -> None:
    """The numbers of parameters of the published networks: 6,829,058 for ARC, 5,028,866 for
    Sudoku (puzzles notes section 2)."""
    arc = Net("trm", 12, 900, 512, 1536, 8, l_layers=2, puzzle_ndim=512, prefix=16)
    sudoku = replace(arc, vocab=11, cells=81, mixing=512, positions="none")
    for net, expected in ((arc, 6_829_058), (sudoku, 5_028_866)):
        with torch.device("meta"):
            model = MODELS["trm"](config_of(net))
        assert sum(weight.numel() for weight in model.parameters()) == expected


def test_impossible_sizes_are_refused() -> None:
    """A number of heads is refused if it leaves a rest or an odd head size."""
    for heads, message in ((5, "does not divide into 5 heads"), (16, "even head size, not 1")):
        with pytest.raises(ModelFormatError, match=message):
            config_of(replace(SMALL, heads=heads))
    # Nothing attends where MLPs mix positions.
    assert config_of(replace(TRM, heads=5, mixing=20)).mixing_size == 20
