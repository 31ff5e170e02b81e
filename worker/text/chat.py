"""Dialogues as text, by a chat template.

The template is the operator's, else the tokenizer's own, else a built-in one.
"""

from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shared.errors import InvalidRequest
from shared.messages import Chat, ImagePart, TextPart, Turn
from worker.models.errors import ModelFormatError
from worker.text.bounded_template import BoundedTemplate
from worker.text.encoding import text_of
from worker.text.foreign import blamed, is_foreign, words_of

LLAMA_3 = """\
{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant\
<|end_header_id|>

{{ '' }}{% endif %}"""
"""Turns between Llama 3's special tokens, behind the tokenizer's start token, if it has one."""

DIALOGUE = """\
{% set turns = messages | rejectattr('role', 'equalto', 'system') | list %}\
{% for message in messages if message.role == 'system' %}{{ message.content | trim ~ '\\n\\n' }}{% endfor %}\
{% for turn in turns %}{{ turn.content | trim if turns | length == 1 else \
turn.role | capitalize ~ ': ' ~ turn.content | trim ~ '\\n\\n' }}{% endfor %}\
{% if turns | length > 1 %}Assistant:{% endif %}"""
"""Plain text, for models that know no turns.

The system's text comes first. The only turn follows as it is, or several turns with their roles.
"""

_TRIAL = Chat((Turn("user", "hi"),))


class ChatTemplate:
    """The chat template of a model.

    `path` is a Jinja file that takes precedence over the tokenizer's own template. `default` is the
    template where there is neither. `trial` is a short dialogue in this form, empty where the
    template refuses it. A template `with_parts` gets the content of each turn as a list, in which
    pictures and sounds have their places. Raises ModelFormatError for a template that cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        path: str | None = None,
        default: str = LLAMA_3,
        *,
        with_parts: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._with_parts = with_parts
        source = None
        if path:
            source = _read(path)
        elif not tokenizer.chat_template:
            source = default
        try:
            self._template = BoundedTemplate(source or tokenizer.get_chat_template())
            self.trial = self._apply(_TRIAL)
        except BaseException as error:
            if not is_foreign(error):
                raise
            # A template that refuses the trial may accept other dialogues.
            if not _is_refusal(error):
                problem = f"The chat template cannot be used: {words_of(error)}"
                raise ModelFormatError(
                    f"{problem}; correct it, or give another as chat_template."
                ) from error
            self.trial = ""

    def write(self, chat: Chat) -> str:
        """Return the text of a dialogue, up to where the answer begins.

        Raise InvalidRequest, with the template's own message, where the template refuses it.
        """
        if not chat.messages:
            raise InvalidRequest("messages: at least one is expected.", field="messages")
        with blamed("messages", "the model's chat template refuses them"):
            return self._apply(chat)

    def _apply(self, chat: Chat) -> str:
        turns: list[dict[str, Any]] = []
        num_characters = 0
        for turn in chat.messages:
            content: Any = _parts_of(turn) if self._with_parts else text_of(turn)
            turns.append({"role": turn.role, "content": content})
            num_characters += _num_characters(turn)
        return self._template.render(
            num_characters,
            messages=turns,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **self._tokenizer.special_tokens_map,
        )


def _parts_of(turn: Turn) -> list[dict[str, str]]:
    """Return the content of a turn as templates of models that see or hear expect it."""
    if isinstance(turn.content, str):
        return [{"type": "text", "text": turn.content}]
    parts: list[dict[str, str]] = []
    for part in turn.content:
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
        else:
            parts.append({"type": "image" if isinstance(part, ImagePart) else "audio"})
    return parts


def _num_characters(turn: Turn) -> int:
    if isinstance(turn.content, str):
        return len(turn.content)
    return sum(len(part.text) for part in turn.content if isinstance(part, TextPart))


def _is_refusal(error: BaseException) -> bool:
    """Return whether the template itself refuses a dialogue."""
    # A template refuses a dialogue by TemplateError itself. Errors in a template are subclasses.
    return type(error) is TemplateError


def _read(path: str) -> str:
    """Return the text of a template's file. Raise ModelFormatError."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFormatError(
            f"The chat template {path} cannot be read: {error}; correct chat_template."
        ) from None
