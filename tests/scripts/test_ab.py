"""`aios ab` finds one fleet equal in three dialects, shows differences and failures, and reports."""

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from scripts.cli import aios
from scripts.cli.ab.asking import Answer, Likelihood, SideAnswers, ask_sides, likelihood
from scripts.cli.ab.comparison import Comparison, compare
from scripts.cli.ab.questions import Question, read_questions
from scripts.cli.ab.sides import Sampling, Side, completion_body, side_of
from scripts.cli.fleet_tool import ToolError
from shared.figures import paired_test, percentile, share_of
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import live

QUESTIONS = [Question("a b c d", "a b c"), Question("one two", "two"), Question("x", "x")]


def main(words: list[str]) -> int:
    return aios.main(["ab", *words])


def compared(sides: Sequence[SideAnswers], questions: Sequence[Question] = QUESTIONS) -> Comparison:
    return compare(questions, sides, Sampling(), concurrency=1, grader="exact")


@pytest.mark.parametrize("sampling", [Sampling(3), Sampling(3, 0.7, 0.9, 7)])
async def test_a_fleet_agrees_with_itself_in_every_dialect(
    redis: Redis, redis_url: str, sampling: Sampling
) -> None:
    async with EchoWorker(redis_url) as worker, live(redis) as (client, _):
        url = str(client.base_url).rstrip("/")
        sides = [
            Side("one", "aios", url),
            Side("two", "openai", f"{url}/v1"),
            Side("three", "tgi", url),
        ]
        found = await ask_sides(sides, QUESTIONS, sampling, concurrency=2)

    comparison = compared(found)
    assert [pair.equal_texts for pair in comparison.pairs] == [3, 3, 3]
    for side in comparison.sides:
        assert (side.tokens, side.errors) == (6, 0)
        assert side.accuracy is not None
        assert side.accuracy.count == 2
        assert side.first_token_ms is not None
        assert side.answer_ms is not None
        assert side.first_token_ms.p95 <= side.answer_ms.p95
    assert comparison.rows[0].texts == ["a b c "] * 3
    texts = [job for job in worker.jobs if hasattr(job.task, "sampling")]
    assert len(texts) == 12
    for job in texts:
        received = job.task.sampling  # type: ignore[union-attr]
        assert received.max_tokens == 3
        assert received.temperature == sampling.temperature
        assert received.top_p == sampling.top_p
        # A greedy answer needs no seed, so the dialects send none or any.
        if sampling.temperature:
            assert received.seed == 7


async def test_a_side_that_fails_is_wrong(redis: Redis, redis_url: str) -> None:
    async with EchoWorker(redis_url), live(redis) as (one, _), live(redis) as (two, _):
        sides = [
            side_of(f"aios:{one.base_url}#echo"),
            side_of(f"other=openai:{two.base_url}/v1#absent"),
        ]
        found = await ask_sides(sides, QUESTIONS, Sampling(), concurrency=1)
    known, unknown = compared(found).sides
    assert (known.name, known.errors, known.tokens) == ("echo", 0, 7)
    assert (unknown.name, unknown.errors, unknown.answer_ms) == ("other", 3, None)
    assert unknown.accuracy is not None
    assert unknown.accuracy.count == 0
    assert "404" in (found[1].answers[0].error or "")


def test_the_first_difference_is_shown_where_it_begins() -> None:
    one = SideAnswers(
        Side("a", "aios", "http://a", cost=3.6),
        [Answer(1, 0.5, "same"), Answer(3, 0.5, "x = 3", 9), Answer(1, error="503")],
        3,
        [Likelihood(-math.log(2) * 6, 3), None, Likelihood(-math.log(2) * 4, 2)],
    )
    two = SideAnswers(
        Side("b", "tgi", "http://b"),
        [Answer(1, 0.5, "same"), Answer(1, 0.5, "x = 4"), Answer(1, 0.5, "fine")],
        3,
        [None, None, None],
    )
    questions = [Question("p", reference="abc"), Question("q"), Question("r", reference="de")]
    comparison = compared([one, two], questions)

    [pair] = comparison.pairs
    assert (pair.compared, pair.equal_texts, pair.accuracy) == (2, 1, None)
    difference = pair.first_difference
    assert difference is not None
    assert (difference.prompt, difference.at) == ("q", 4)
    assert (difference.first, difference.second) == ("x = 3", "x = 4")
    first, second = comparison.sides
    assert (first.bits_per_token, first.bits_per_byte) == pytest.approx((2.0, 2.0))
    # 3.6 an hour for three tokens a second.
    assert first.cost_per_million_tokens == pytest.approx(0.001 / 3 * 1e6)
    assert first.answer_ms is not None
    assert first.answer_ms.p50 == 2000
    assert (second.bits_per_token, second.cost_per_million_tokens) == (None, None)


async def test_the_likelihood_of_a_reference_is_read_from_what_a_server_repeats() -> None:
    """It is the sum over the tokens that begin behind the prompt."""

    def answered(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert (body["prompt"], body["max_tokens"], body["echo"]) == ("say abc de", 0, True)
        logprobs = {"text_offset": [0, 4, 7, 8], "token_logprobs": [None, -9.0, -1.0, -0.5]}
        return httpx.Response(200, json={"choices": [{"text": "", "logprobs": logprobs}]})

    side = Side("a", "openai", "http://a/v1", template="say {problem}")
    async with httpx.AsyncClient(transport=httpx.MockTransport(answered)) as client:
        assert await likelihood(client, side, "abc", " de") == Likelihood(-1.5, 2)


def test_tgi_is_not_given_what_it_refuses() -> None:
    """A93: TGI gets no temperature of 0 and no top_p of 1."""
    side = Side("b", "tgi", "http://b")

    greedy = completion_body(side, "a", Sampling(5, 0.0, 1.0, 7))
    assert greedy["parameters"] == {"max_new_tokens": 5, "do_sample": False, "details": True}

    sampled = completion_body(side, "a", Sampling(5, 0.7, 1.0, 7))
    assert sampled["parameters"] == {
        "max_new_tokens": 5,
        "do_sample": True,
        "details": True,
        "temperature": 0.7,
        "seed": 7,
    }


@given(total=st.integers(1, 400), data=st.data())
def test_an_interval_holds_what_a_test_of_its_share_would_keep(
    total: int, data: st.DataObject
) -> None:
    """Wilson's bounds are the shares p for which the count is 1.96 standard deviations away."""
    count = data.draw(st.integers(0, total))
    share = share_of(count, total)
    assert 0 <= share.low <= share.value <= share.high <= 1
    z = NormalDist().inv_cdf(0.975)
    for bound in (share.low, share.high):
        deviation = math.sqrt(bound * (1 - bound) / total)
        if deviation:
            assert abs(share.value - bound) / deviation == pytest.approx(z, rel=1e-3)


def test_a_paired_test_is_that_of_the_books() -> None:
    """McNemar's exact p of 6 and 16 discordant pairs, and of 10 and none, counted by hand."""
    first = [True] * 6 + [False] * 16 + [True] * 30
    second = [False] * 6 + [True] * 16 + [True] * 30
    test = paired_test(first, second)
    tail = sum(math.comb(22, k) for k in range(7))
    assert (test.only_first, test.only_second) == (6, 16)
    assert test.p == pytest.approx(2 * tail / 2**22)
    assert test.p == pytest.approx(0.0525, abs=1e-4)
    assert test.difference == pytest.approx(-10 / 52)
    assert test.low < test.difference < test.high
    assert paired_test([True] * 10, [False] * 10).p == pytest.approx(2 / 2**10)
    assert paired_test([True, False], [True, False]).p == 1


def test_percentiles() -> None:
    assert [percentile([1, 2, 3, 4, 5], p) for p in (0, 50, 90, 100)] == [1, 3, 4.6, 5]
    assert percentile([7], 95) == 7


@pytest.mark.parametrize(
    ("grader", "text", "is_right"),
    [
        ("answer", "so\n\\boxed{3}", True),
        ("answer", "3 ", True),
        ("answer", "\\boxed{4}, not 3", False),
        ("exact", " 3\n", True),
        ("exact", "it is 3", False),
        ("contains", "it is 3", True),
    ],
)
def test_graders(grader: str, text: str, is_right: bool) -> None:
    assert Question("1 + 2", "3").is_solved_by(text, grader) == is_right  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "line 2: .*"),
        ("q.jsonl", '{"answer": "a"}', "line 1: expected an object of answer, kind, prompt"),
        ("q.jsonl", "[", "line 1"),
        ("q.txt", "\n\n", "expected at least one question"),
    ],
)
def test_files_of_questions_are_checked(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ToolError, match=message):
        read_questions(tmp_path / name)


async def test_the_command_writes_reports(
    redis: Redis, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markdown is printed; JSON and HTML hold every answer, and what is no HTML is escaped."""
    lines = [
        json.dumps({"prompt": "a <b>", "answer": "a <b>", "kind": "one"}),
        json.dumps({"prompt": "c d", "answer": "c", "kind": "two"}),
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    async with EchoWorker(redis_url), live(redis) as (client, _):
        url = str(client.base_url).rstrip("/")
        sides = [f"one=aios:{url}", f"two=tgi:{url}", f"three=openai:{url}/v1"]
        command = ["run", *sides, "--questions", str(tmp_path / "q.jsonl"), "--grader", "exact"]
        command += ["--template", "two=say {problem}", "--cost", "one=2"]
        assert await asyncio.to_thread(main, [*command, *files]) == 0
        printed = capsys.readouterr().out
        assert "| one | 50.0 % (9.5 to 90.5), 1 of 2 |" in printed
        assert "- one and three wrote equal texts for 2 of 2 questions." in printed
        assert "- one and two wrote equal texts for 0 of 2 questions." in printed
        assert "only one solved, 0 only two: +50.0 points" in printed
    assert await asyncio.to_thread(main, command) == 1, "nobody is there any more"
    assert "one: ConnectError" in capsys.readouterr().err

    report = json.loads((tmp_path / "r.json").read_text())
    assert [row["texts"] for row in report["rows"]] == [
        ["a <b>", "say a <b>", "a <b>"],
        ["c d", "say c d", "c d"],
    ]
    assert report["sides"][0]["accuracy_by_kind"]["one"]["count"] == 1
    page = (tmp_path / "r.html").read_text()
    assert "say a &lt;b&gt;" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/", "").replace(
        "http://purl.org/", ""
    ).replace("http://creativecommons.org/", "")


def test_sides_need_names_of_their_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "q").write_text("a")
    command = ["run", "--questions", str(tmp_path / "q")]
    assert main([*command, "aios:http://a#m", "tgi:http://b#m"]) == 1
    assert "names of their own" in capsys.readouterr().err
    assert main([*command, "aios:http://a#m"]) == 1
    assert main([*command, "aios:http://a#m", "aios:http://a#n", "--cost", "x=1"]) == 1
    assert "--cost: expected NAME=VALUE with one of m, n" in capsys.readouterr().err
    assert main([*command, "vllm:http://a"]) == 2


async def test_models_of_one_fleet_are_compared_by_name(
    redis: Redis, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q").write_text("a b\n")
    async with EchoWorker(redis_url), live(redis) as (client, _):
        assert isinstance(client, httpx.AsyncClient)
        command = ["run", "--models", "echo,absent", "--url", str(client.base_url)]
        command += ["--questions", str(tmp_path / "q")]
        assert await asyncio.to_thread(main, command) == 1
    printed = capsys.readouterr()
    assert "| absent | - |" in printed.out
    assert "1 of 1 |" in printed.out
    assert "'absent' does not exist" in printed.err
