"""`q_halt` and `q_continue` of an implant's answer.

They pass from the last event of a job into the bodies, and are absent where there are none."""

import pytest

from api.schemas.chat import chat_logprobs
from api.schemas.hrm import generate_response
from api.schemas.logprobs import logprobs_body
from api.schemas.openai import Heading, completion
from api.stream.request_events import Outcome, RequestEvents
from shared.messages import Done, Generated, HaltState, TokenLogprob, Tokens

HEADING = Heading("id", 0, "m")


async def outcomes(done: Done, n: int) -> list[Outcome]:
    """Return the outcomes of a request whose one job has `n` choices of a token each."""
    run = RequestEvents(["00" + "a" * 32], n)
    for choice in range(n):
        run.put(0, choice + 1, Tokens((5,), "x", choice))
    run.put(0, n + 1, done)
    return await run.outcomes()


@pytest.mark.parametrize("n", [1, 2])
async def test_each_choice_tells_its_own(n: int) -> None:
    # A single choice has the finish reason of its job.
    reasons = ("stop", "stop") if n == 2 else ()
    q_values = ((-1.5, 2.0), (0.25, -3.0))[:n]
    done = Done(
        "stop", num_prompt_tokens=1, num_completion_tokens=n, result=Generated(reasons, q_values)
    )
    [outcome] = await outcomes(done, n)

    expected = [{"q_halt": -1.5, "q_continue": 2.0}, {"q_halt": 0.25, "q_continue": -3.0}]
    assert generate_response([outcome]).model_dump()["q_values"] == expected[:n]

    choices = completion(HEADING, [outcome]).model_dump()["choices"]
    assert [choice["q_values"]["q_halt"] for choice in choices] == [-1.5, 0.25][:n]


async def test_each_token_tells_its_own() -> None:
    """Where log-probabilities are asked for, with the ACT segments that ran for the token."""
    halts = [HaltState(-1.5, 2.0, segments=3), None, HaltState(0.25, -3.0, segments=1)]
    logprobs = [TokenLogprob(-0.5, "x", halt=halt) for halt in halts]
    ids = [5, 6, 7]
    values = [{"q_halt": -1.5, "q_continue": 2.0}, None, {"q_halt": 0.25, "q_continue": -3.0}]

    whole = logprobs_body(ids, logprobs)
    assert whole is not None
    assert whole.model_dump()["q_values"] == values
    assert whole.model_dump()["act_segments"] == [3, None, 1]

    chat = chat_logprobs(ids, logprobs)
    assert chat is not None
    tokens = chat.model_dump()["content"]
    assert [token.get("q_values") for token in tokens] == values
    assert [token.get("act_segments") for token in tokens] == [3, None, 1]


async def test_other_models_do_not_mention_them() -> None:
    [outcome] = await outcomes(Done("stop", 1, 1), 1)
    assert "q_values" not in generate_response([outcome]).model_dump()

    [choice] = completion(HEADING, [outcome]).model_dump()["choices"]
    assert "q_values" not in choice

    # Nor does an implant, which has no segments, mention those.
    for halt, absent in (
        (None, {"q_values", "act_segments"}),
        (HaltState(1.0, 2.0), {"act_segments"}),
    ):
        logprobs = [TokenLogprob(-0.5, "x", halt=halt)]
        whole = logprobs_body([5], logprobs)
        chat = chat_logprobs([5], logprobs)
        assert whole is not None
        assert chat is not None
        for body in (whole.model_dump(), chat.content[0].model_dump()):
            assert {"q_values", "act_segments"} - body.keys() == absent
