"""ACTv1: the network against a plain reference (`act_reference`), and what its batches promise."""

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
    """X16, format notes section 1: logits and q values follow the published formulas, for one and
    two segments."""
    bundle, weights = bundle_of(tmp_path, net)
    expected = reference(weights, net, ROW, segments)
    assert expected[0].std() > 0.3 and expected[0].abs().max() < 20
    assert close(run(bundle.model, [ROW], segments)[0], expected)


def test_reference_can_tell_networks_apart() -> None:
    """Guards the test above: each rule, when broken, moves the reference far beyond the
    tolerance."""
    net = Net()
    moe = Net(experts=4)
    weights = random_weights(net)
    moe_weights = random_weights(moe)
    right = reference(weights, net, ROW)
    moe_right = reference(moe_weights, moe, ROW)
    wrong = [
        reference(weights, net, ROW, reset_l=False),
        reference(weights, net, ROW, segments=2),
        reference(weights, replace(net, h_cycles=2, l_cycles=3), ROW),
        reference(weights, replace(net, heads=4), ROW),
        reference(weights, replace(net, causal=True), ROW),
        reference(weights, replace(net, window=3), ROW),
    ]
    assert not any(close(other, right, 1e-2) for other in wrong)
    assert not close(
        reference(moe_weights, replace(moe, experts_per_token=1), ROW), moe_right, 1e-2
    )


def test_wide_networks_scale_and_clamp(tmp_path: Path) -> None:
    """Format notes section 1: from 512 wide, embeddings grow by sqrt(H) within +-10; logits stay
    within +-20."""
    net = Net(hidden=512, intermediate=16, heads=8, h_layers=1, h_cycles=1, l_cycles=1)
    weights = random_weights(net)
    weights["inner.lm_head.weight"] *= 20
    bundle, _ = bundle_of(tmp_path, net, weights=weights)
    expected = reference(weights, net, ROW)
    assert expected[0].max() == 20 and expected[0].min() == -20
    assert close(run(bundle.model, [ROW], 1)[0], expected, 1e-3)


@each_net
def test_batched_equals_single(tmp_path: Path, net: Net) -> None:
    """T3, X17: rows of unequal lengths, right-padded into a batch, each give what they give alone,
    whatever the pad."""
    model = bundle_of(tmp_path, net)[0].model
    rows = [ROW, *OTHERS]
    single = [run(model, [row], 2)[0] for row in rows]
    for pad in (1, 38):
        assert all(close(a, b) for a, b in zip(run(model, rows, 2, pad), single, strict=True))


def test_padding_taken_for_tokens_would_show(tmp_path: Path) -> None:
    """Guards T3: the same row with its padding counted as text gives other logits."""
    model = bundle_of(tmp_path, Net())[0].model
    short = OTHERS[1]
    logits, q = run(model, [[*short, 1, 1, 1]], 1)[0]
    assert not close((logits[: len(short)], q), run(model, [short], 1)[0], 1e-2)


def test_rows_at_different_segments_share_a_batch(tmp_path: Path) -> None:
    """T3: a row in its second segment and a fresh row, in one batch, each equal themselves
    alone."""
    model = bundle_of(tmp_path, Net(experts=4))[0].model
    old = torch.tensor([ROW])
    new = torch.tensor([ROW[::-1]])
    length = torch.tensor([len(ROW)])
    first = model.forward_segment(old, length, model.initial_carry(1, len(ROW)))
    carry = torch.cat((first.carry, model.initial_carry(1, len(ROW))))
    out = model.forward_segment(torch.cat((old, new)), length.repeat(2), carry)
    q = torch.stack((out.q_halt, out.q_continue), dim=-1)
    assert close((model.logits(out.hidden[0]), q[0]), run(model, [ROW], 2)[0])
    assert close((model.logits(out.hidden[1]), q[1]), run(model, [ROW[::-1]], 1)[0])


def test_attention_sees_the_future_unless_causal(tmp_path: Path) -> None:
    """X18: changing the last token changes earlier logits in a bidirectional network and none in a
    causal one."""
    for causal in (False, True):
        model = bundle_of(tmp_path / str(causal), Net(causal=causal))[0].model
        before, after = (run(model, [[*ROW[:-1], last]], 1)[0][0][:-1] for last in (7, 8))
        assert torch.allclose(before, after, atol=1e-5) is causal


def test_padding_stays_finite(tmp_path: Path) -> None:
    """X17: a window that ends short of the padding, and an empty row, leave no NaN for later
    segments to spread."""
    model = bundle_of(tmp_path, Net(window=2))[0].model
    ids = torch.zeros(3, 7, dtype=torch.long)
    lengths = torch.tensor([7, 3, 0])
    assert attention_mask(lengths, 7, model.config).any(-1).all(), (
        "a query without keys is NaN on some backends"
    )
    assert model.forward_segment(ids, lengths, model.initial_carry(3, 7)).hidden.isfinite().all()


def test_refuses_more_tokens_than_the_network_knows(tmp_path: Path) -> None:
    """Format notes section 1: input longer than the position table is an error."""
    model = bundle_of(tmp_path, Net(max_seq_len=4))[0].model
    with pytest.raises(ValueError, match="7 tokens exceed the network's 4"):
        run(model, [ROW], 1)
