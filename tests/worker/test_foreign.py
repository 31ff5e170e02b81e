"""Templates and tokenizers of a model that raise, hang or make too much on a caller's input."""

from typing import Any

import pytest
from redis.asyncio import Redis
from transformers import PreTrainedTokenizerFast

from shared.errors import InvalidRequest
from shared.messages import Chat, Detokenize, Embed, Generate, Sampling, Task, Tokenize, Turn
from tests.fixtures.e2e.inside import fleet_inside
from tests.fixtures.scripted_runner import Scripted
from tests.fixtures.worker.tokenizer_kinds import SIZE, tokenizer_of
from worker.models.errors import ModelFormatError
from worker.text import bounded_template
from worker.text.chat import ChatTemplate
from worker.text.vocabulary import Vocabulary

TALK = Chat(
    (
        Turn("system", "Be brief."),
        Turn("user", " One? "),
        Turn("assistant", "1"),
        Turn("user", "Two?"),
    )
)
LONG_LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}"
DOUBLING = "{% set ns = namespace(s='xx') %}{% for i in range(60) %}"
ENDS = "{% endfor %}{% endfor %}"

BAD = {
    "{{ 1 + messages[0].content }}": "unsupported operand",
    "{{ 1 / 0 }}": "division by zero",
    "{{ messages[0].content | int / 0 }}": "division by zero",
    "{{ 'a' * 'b' }}": "can't multiply",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for i in range(10 ** 9) %}x{% endfor %}": "Range too big",
    "{{ raise_exception('Only one turn.') }}": "Only one turn",
    "{{ nobody.name }}": "'nobody' is undefined",
    "{{ messages | dictsort }}": "items",
    "{{ messages[0].content.__class__.__mro__ }}": "unsafe",
    "{{ ''.join(messages) }}": "expected str instance",
    f"{LONG_LOOP}{ENDS}": "computes for more than",
    f"{LONG_LOOP}x{ENDS}": "makes a text of more than",
    f"{{% set all %}}{LONG_LOOP}{ENDS}{{% endset %}}": "computes for more than",
    f"{DOUBLING}{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}": "makes a text of more than",
    f"{DOUBLING}{{% set ns.s = ns.s + ns.s %}}{{% endfor %}}": "makes a text of more than",
    f"{DOUBLING}{{% set ns.s = [ns.s, ns.s] | join %}}{{% endfor %}}": "makes a text of more than",
    "{{ 'x' * 10 ** 11 }}": "makes a text of more than",
    "{{ 10 ** (10 ** 10) }}": "makes a number of more than",
    "{{ 'x' | center(10 ** 11) }}": "makes a text of more than",
    "{{ 'x'.ljust(10 ** 11) }}": "makes a text of more than",
    "{{ '%99999999999s' % 'x' }}": "a width that is too large",
    "{{ '%99999999999s' | format('x') }}": "a width that is too large",
    "{{ '{:>99999999999}'.format('x') }}": "a width that is too large",
    "{{ ('x' * 99999).replace('x', 'y' * 99999) }}": "makes a text of more than",
    "{{ range(99999) | join('y' * 99999) }}": "makes a text of more than",
}
"""Templates that fail, each with words of the error that a client must get."""

GOOD = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}[me]{% endif %}",
    "{{ bos_token }}{% for m in messages %}{{ '%-8s' | format(m.role) }}{{ m.content * 2 }}{{ "
    "loop.index + 1 }}\n{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue "
    "%}{% endif %}{% set ns.n = ns.n + 1 %}{{ ns.n ~ ':' ~ m.content.strip().replace('?', '!') "
    "}}{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% "
    "endgeneration %}{% else %}{{ m | tojson(indent=2) }}{% endif %}{% endfor %}{{ tools is none "
    "}}{{ documents is defined }}",
    "{% macro turn(m) %}<{{ m.role | upper }}>{{ ['a', m.content] | join(', ') }}{% endmacro %}{% "
    "for m in messages %}{{ turn(m) }}{% endfor %}{{ range(3) | list }}{{ '{:>4}'.format(7) }}{{ "
    "dict(a=1)['a'] }}",
)


def template_of(source: str) -> ChatTemplate:
    """Return a chat template that does nothing for a single turn, with which it is tried."""
    guarded = f"{{% if messages | length > 1 %}}{source}{{% endif %}}"
    return ChatTemplate(tokenizer_of("word_piece"), default=guarded)


@pytest.mark.parametrize("source", BAD)
def test_what_a_template_raises_is_a_400_on_the_messages_in_its_words(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that fails refuses the messages, with its own words in the error."""
    if BAD[source] != "computes for more than":
        # On a busy machine the limit of the time may come before any other one.
        monkeypatch.setattr(bounded_template, "_TIME_LIMIT_S", 60.0)
    with pytest.raises(InvalidRequest) as caught:
        template_of(source).write(TALK)

    assert caught.value.field == "messages"
    assert BAD[source] in caught.value.message
    assert caught.value.message.startswith("messages: the model's chat template refuses them: ")


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "{{ 'x' * 10 ** 11 }}", "{% for %}", "{{ [1].nothing() }}"]
)
def test_one_that_can_never_work_is_refused_at_start(source: str) -> None:
    """A template that fails for a single turn is refused when the model is loaded."""
    with pytest.raises(ModelFormatError, match="The chat template cannot be used: "):
        ChatTemplate(tokenizer_of("word_piece"), default=source)


@pytest.mark.parametrize("source", GOOD)
def test_bounded_templates_write_what_transformers_does(source: str) -> None:
    """A template under our bounds writes the same text as with transformers."""
    tokenizer = tokenizer_of("word_piece")
    tokenizer.chat_template = source
    turns = [{"role": turn.role, "content": turn.content} for turn in TALK.messages]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    assert ChatTemplate(tokenizer).write(TALK) == expected
    assert template_of(source).write(TALK) == expected


def test_a_long_dialogue_may_be_written_at_length() -> None:
    """The bound on a template's text grows with the messages."""
    talk = Chat((Turn("user", "x" * 3_000_000), Turn("user", "y")))
    template = template_of("{% for m in messages %}{{ (m.content ~ '.') * 2 }}{% endfor %}")

    assert len(template.write(talk)) == 2 * 3_000_003


class Broken(PreTrainedTokenizerFast):
    """A tokenizer that cannot encode the word "hello", and cannot decode the token 5."""

    def __call__(self, text: Any, *rest: Any, **options: Any) -> Any:
        if "hello" in text:
            raise KeyError("no such\npiece")
        return super().__call__(text, *rest, **options)

    def decode(self, token_ids: Any, **options: Any) -> Any:
        if 5 in token_ids:
            raise Panic("called `Option::unwrap()` on a `None` value")
        return super().decode(token_ids, **options)


Panic = type("PanicException", (BaseException,), {})
"""The class of Rust's panics in Python, which is no Exception."""


def broken_tokenizer() -> Broken:
    backend = tokenizer_of("word_piece").backend_tokenizer
    return Broken(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    ("task", "field", "words"),
    [
        (Generate("hello", Sampling(1, seed=0)), "prompt", "no such"),
        (Generate(Chat((Turn("user", "hello"),)), Sampling(1, seed=0)), "messages", "no such"),
        (Tokenize("hello"), "prompt", "no such"),
        (Embed("hello"), "input", "no such"),
        (Detokenize((4, 5)), "tokens", "unwrap"),
    ],
)
def test_what_a_tokenizer_raises_is_a_400_on_its_field(task: Task, field: str, words: str) -> None:
    """A tokenizer's error refuses the field that it was reading, in its own words."""
    tokenizer = broken_tokenizer()
    vocabulary = Vocabulary(tokenizer, SIZE, ChatTemplate(tokenizer))

    with pytest.raises(InvalidRequest) as caught:
        if isinstance(task, Generate):
            vocabulary.prompt(task.prompt, "prompt")
        elif isinstance(task, Tokenize | Detokenize | Embed):
            vocabulary.encode(task, 64)

    assert caught.value.field == field
    assert words in caught.value.message


async def test_over_http_the_worker_goes_on(redis: Redis) -> None:
    """A failing template is a 400 and a failing decode a 500; the next request is served."""
    tokenizer = broken_tokenizer()
    # A message of one letter divides by zero.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'do ' * (8 // (m.content | length - 1)) }}{% endfor %}"
    )
    async with fleet_inside(redis, {"echo": Scripted(tokenizer, [[4, 4, 5, 4]])}) as client:

        async def chat(content: str, max_tokens: int) -> tuple[int, dict[str, Any]]:
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
            answer = await client.post("/v1/chat/completions", json=body)
            return answer.status_code, answer.json()

        status, body = await chat("a", max_tokens=1)
        assert status == 400
        assert body["error"]["param"] == "messages"
        assert "integer" in body["error"]["message"]
        assert "zero" in body["error"]["message"]

        # The third token is 5, which cannot be decoded.
        status, body = await chat("ten", max_tokens=4)
        assert status == 500
        assert "unwrap" in body["error"]["message"]

        status, body = await chat("ten", max_tokens=2)
        assert status == 200
        assert body["choices"][0]["finish_reason"] == "length"
