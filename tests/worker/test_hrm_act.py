"""ACTv1: the network equals a plain reference, and a row does not depend on its batch.

The reference is `tests/fixtures/worker/act_reference.py`.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.fixtures.worker.act_fixtures import Net, random_weights
from tests.fixtures.worker.act_reference import (
    OTHERS,
    ROW,
    bundle_of,
    close,
    each_net,
    reference,
    run,
)
from worker.models.hrm_act import attention_mask


@each_net
@pytest.mark.parametrize("segments", [1, 2])
def test_equals_the_reference(tmp_path: Path, net: Net, segments: int) -> None:
    """Logits and q values follow the published formulas (X16, format notes section 1)."""
    bundle, weights = bundle_of(tmp_path, net)

    [row] = run(bundle.model, [ROW], segments)

    logits, q = reference(weights, net, ROW, segments)
    # The logits differ, and none is clamped.
    assert logits.std() > 0.3
    assert logits.abs().max() < 20
    assert close(row, (logits, q))


def test_reference_can_tell_networks_apart() -> None:
    """A reference with any rule broken is far beyond the tolerance of the test above."""
    net = Net()
    weights = random_weights(net)
    right = reference(weights, net, ROW)
    for wrong in (
        reference(weights, net, ROW, reset_l=False),
        reference(weights, net, ROW, segments=2),
        reference(weights, replace(net, h_cycles=2, l_cycles=3), ROW),
        reference(weights, replace(net, heads=4), ROW),
        reference(weights, replace(net, causal=True), ROW),
        reference(weights, replace(net, window=3), ROW),
    ):
        assert not close(wrong, right, 1e-2)

    moe = Net(experts=4)
    weights = random_weights(moe)
    right = reference(weights, moe, ROW)
    wrong = reference(weights, replace(moe, experts_per_token=1), ROW)
    assert not close(wrong, right, 1e-2)


def test_wide_networks_scale_and_clamp(tmp_path: Path) -> None:
    """From a width of 512 on, embeddings are scaled by sqrt(H) and clamped to +-10.

    Logits are clamped to +-20 (format notes section 1).
    """
    net = Net(hidden=512, intermediate=16, heads=8, h_layers=1, h_cycles=1, l_cycles=1)
    weights = random_weights(net)
    weights["inner.lm_head.weight"] *= 20
    bundle, _ = bundle_of(tmp_path, net, weights=weights)

    [row] = run(bundle.model, [ROW], 1)

    logits, q = reference(weights, net, ROW)
    assert logits.max() == 20
    assert logits.min() == -20
    assert close(row, (logits, q), 1e-3)


@each_net
def test_batched_equals_single(tmp_path: Path, net: Net) -> None:
    """Rows of unequal lengths give in a batch what they give alone, with any padding (T3, X17)."""
    model = bundle_of(tmp_path, net)[0].model
    rows = [ROW, *OTHERS]

    for pad in (1, 38):
        batched_rows = run(model, rows, 2, pad)
        for row, batched in zip(rows, batched_rows, strict=True):
            [single] = run(model, [row], 2)
            assert close(batched, single)


def test_padding_taken_for_tokens_would_show(tmp_path: Path) -> None:
    """A row with its padding counted as tokens gives other logits, so that T3 proves something."""
    model = bundle_of(tmp_path, Net())[0].model
    short = OTHERS[1]

    [(logits, q)] = run(model, [[*short, 1, 1, 1]], 1)

    [right] = run(model, [short], 1)
    assert not close((logits[: len(short)], q), right, 1e-2)


def test_rows_at_different_segments_share_a_batch(tmp_path: Path) -> None:
    """A row in its second segment and a fresh row share a batch; each is as it is alone (T3)."""
    model = bundle_of(tmp_path, Net(experts=4))[0].model
    old = torch.tensor([ROW])
    new = torch.tensor([ROW[::-1]])
    length = torch.tensor([len(ROW)])
    first = model.forward_segment(old, length, model.initial_carry(1, len(ROW)))
    carry = torch.cat((first.carry, model.initial_carry(1, len(ROW))))

    out = model.forward_segment(torch.cat((old, new)), length.repeat(2), carry)

    q = torch.stack((out.q_halt, out.q_continue), dim=-1)
    [old_alone] = run(model, [ROW], 2)
    [new_alone] = run(model, [ROW[::-1]], 1)
    assert close((model.logits(out.hidden[0]), q[0]), old_alone)
    assert close((model.logits(out.hidden[1]), q[1]), new_alone)


def test_attention_sees_the_future_unless_causal(tmp_path: Path) -> None:
    """Another last token changes earlier logits, but none in a causal network (X18)."""
    for causal in (False, True):
        model = bundle_of(tmp_path / str(causal), Net(causal=causal))[0].model

        [(with_7, _)] = run(model, [[*ROW[:-1], 7]], 1)
        [(with_8, _)] = run(model, [[*ROW[:-1], 8]], 1)

        assert torch.allclose(with_7[:-1], with_8[:-1], atol=1e-5) is causal


def test_padding_stays_finite(tmp_path: Path) -> None:
    """Padding behind a window and an empty row leave no NaN for later segments to spread (X17)."""
    model = bundle_of(tmp_path, Net(window=2))[0].model
    ids = torch.zeros(3, 7, dtype=torch.long)
    lengths = torch.tensor([7, 3, 0])

    # A query without keys is NaN on some backends.
    assert attention_mask(lengths, 7, model.config).any(-1).all()
    out = model.forward_segment(ids, lengths, model.initial_carry(3, 7))
    assert out.hidden.isfinite().all()


def test_refuses_more_tokens_than_the_network_knows(tmp_path: Path) -> None:
    """A row longer than the position table is an error (format notes section 1)."""
    model = bundle_of(tmp_path, Net(max_seq_len=4))[0].model
    with pytest.raises(ValueError, match="7 tokens exceed the network's 4"):
        run(model, [ROW], 1)
