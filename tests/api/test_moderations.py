"""OpenAI's own client asks for moderations."""

import openai
import pytest
from redis.asyncio import Redis

from api.http.request_state import Usage
from api.schemas.moderations import is_harmless, moderation
from api.stream.request_events import Outcome
from shared.messages import Label, Labelled
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory


async def test_openais_client_gets_a_judgement(redis: Redis, able: EchoWorker) -> None:
    async with in_memory(redis) as http:
        client = openai.AsyncOpenAI(
            base_url=f"{http.base_url}/v1", api_key="none", http_client=http
        )
        answer = await client.moderations.create(input=["a b", "c"], model="echo")
        with pytest.raises(openai.BadRequestError):
            await client.moderations.create(
                input=[{"type": "image_url", "image_url": {"url": "data:,"}}], model="echo"
            )
    assert answer.model == "echo"
    assert len(answer.results) == 2
    assert answer.results[0].flagged


@pytest.mark.parametrize(
    ("labels", "flagged"),
    [
        ({"safe": 0.9, "unsafe": 0.1}, False),
        ({"safe": 0.4, "unsafe": 0.6}, True),
        ({"toxic": 0.2, "threat": 0.51}, True),
        ({"toxic": 0.2, "threat": 0.49}, False),
        ({"NOT_TOXIC": 0.9, "TOXIC": 0.1}, False),
        ({"non-hate": 0.5, "hate": 0.5}, True),
    ],
)
def test_what_is_flagged(labels: dict[str, float], flagged: bool) -> None:
    found = Labelled(tuple(Label(name, score) for name, score in labels.items()))
    [result] = moderation("x", "m", [Outcome((), Usage(), found)]).results
    assert result.flagged is flagged
    assert result.category_scores == labels


def test_only_whole_names_are_harmless() -> None:
    assert is_harmless("Not-Offensive")
    assert not is_harmless("unsafe")
    assert not is_harmless("offensive")
