"""Every field that OpenAI's client can send has a documented fate (B51).

It is served, refused by its name, or documented to have no effect."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from pydantic import AliasChoices, BaseModel, ValidationError

from api.schemas.chat import ChatRequest, Message
from api.schemas.embeddings import EmbeddingsRequest
from api.schemas.openai import CompletionRequest, StreamOptions

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
SECTION = re.split(r"^##+ .*$", PAGE.partition("### What is refused\n")[2], flags=re.MULTILINE)[0]


def neutral_values() -> dict[str, list[Any]]:
    """Return the values that the page's table allows for each field."""
    values_of: dict[str, list[Any]] = {}
    for names, values in re.findall(r"^\| (`.+`) \|(.*)\|$", SECTION, re.MULTILINE):
        allowed = [json.loads(value) for value in re.findall("`(.+?)`", values)]
        for name in re.findall(r"`(\w+)`", names):
            values_of[name] = allowed
    return values_of


NEUTRAL = neutral_values()
WITHOUT_EFFECT = set(re.findall(r"`(\w+)`", SECTION.partition("Taken without effect")[2]))
IN_MESSAGES = {
    "name": "ann",
    "tool_calls": [{"id": "1"}],
    "function_call": {"name": "f"},
    "audio": {"id": "1"},
    "refusal": "no",
}
HELLO = {"role": "user", "content": "Hello"}
CHAT = {"messages": [HELLO]}


def fields(model: type[BaseModel]) -> set[str]:
    """Return all names under which the model's fields may be sent."""
    names = set(model.model_fields)
    for field in model.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            for alias in field.validation_alias.choices:
                names.add(str(alias))
    return names


def fields_of_client(*params: Any) -> set[str]:
    """Return the fields that OpenAI's client declares in these types."""
    names: set[str] = set()
    for param in params:
        names |= param.__annotations__.keys()
    return names


def refused(model: type[BaseModel], body: dict[str, Any]) -> str:
    """Check that the body is refused; return the field that the error names."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    [error] = caught.value.errors()
    return str(error["ctx"]["field"])


def test_no_field_of_openais_is_overlooked() -> None:
    chat = fields_of_client(chat_create_params.CompletionCreateParamsStreaming)
    assert chat <= fields(ChatRequest) | NEUTRAL.keys() | WITHOUT_EFFECT

    completions = fields_of_client(completion_create_params.CompletionCreateParamsStreaming)
    assert completions <= fields(CompletionRequest) | {"suffix"} | WITHOUT_EFFECT

    embeddings = fields_of_client(embedding_create_params.EmbeddingCreateParams)
    assert embeddings <= fields(EmbeddingsRequest) | WITHOUT_EFFECT

    options = fields_of_client(ChatCompletionStreamOptionsParam)
    assert options == fields(StreamOptions) | {"include_obfuscation"}

    # The roles `tool` and `function` are refused as a whole.
    served_roles = []
    for message in get_args(ChatCompletionMessageParam):
        if not re.search("Tool|Function", message.__name__):
            served_roles.append(message)
    assert fields_of_client(*served_roles) == fields(Message) | IN_MESSAGES.keys()


def test_what_the_page_allows_asks_for_nothing() -> None:
    assert len(NEUTRAL) > 10
    for field, values in NEUTRAL.items():
        for value in [*values, None]:
            ChatRequest.model_validate(CHAT | {field: value})
        assert refused(ChatRequest, CHAT | {field: {"other": 1}}) == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("store", True),
        ("service_tier", "flex"),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "a"}),
        ("verbosity", "high"),
        ("web_search_options", {}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_schema"}),
    ],
)
def test_behaviour_that_is_not_served_is_refused_by_name(field: str, value: Any) -> None:
    assert refused(ChatRequest, CHAT | {field: value}) == field


@pytest.mark.parametrize(("field", "value"), IN_MESSAGES.items())
def test_so_is_what_a_message_says_besides(field: str, value: Any) -> None:
    message = HELLO | {"role": "assistant", field: value}
    assert refused(ChatRequest, {"messages": [message]}) == field


def test_padding_of_chunks_may_only_be_turned_off() -> None:
    """Clients that turn padding off are served."""
    StreamOptions.model_validate({"include_obfuscation": False})
    assert refused(StreamOptions, {"include_obfuscation": True}) == "include_obfuscation"


def test_what_has_no_effect_is_taken() -> None:
    bare = ChatRequest.model_validate(CHAT)
    assert {"metadata", "safety_identifier", "prompt_cache_key"} <= WITHOUT_EFFECT
    assert ChatRequest.model_validate(CHAT | dict.fromkeys(WITHOUT_EFFECT, "x")) == bare
