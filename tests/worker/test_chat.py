"""Dialogues and token ids of every runner: templates, their special tokens and their refusals.

Texts become token ids, and token ids texts.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from scripts.train.special_tokens import byte_tokenizer
from shared.errors import ContextExceeded, InvalidRequest
from shared.messages import (
    Chat,
    Detokenize,
    Detokenized,
    Generate,
    Prompt,
    Sampling,
    Tokenize,
    Tokenized,
    Turn,
)
from shared.settings.settings import ModelEntry, Settings
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import end_of, generate_all
from tests.fixtures.worker.tiny_causal import llama, write
from worker.engine.runner import Runner, RunnerOptions
from worker.engine.sequence import Encoded
from worker.host.fingerprint import fingerprint
from worker.host.loading import load_models
from worker.models.errors import ModelFormatError
from worker.runners.echo import Echo
from worker.runners.registry import load_runner
from worker.text.chat import DIALOGUE, ChatTemplate

USER = Turn("user", " Hi! ")
USER_ONLY = Chat((USER,))
TALK = Chat(
    (
        Turn("system", "Be brief."),
        Turn("user", "One?"),
        Turn("assistant", "1"),
        Turn("user", "Two?"),
    )
)
BOS = "<|im_start|>"
EOQ = "<|im_end|>"
TERSE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if "
    "add_generation_prompt %}[me]{% endif %}"
)
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role.') }}{% endif %}"
    + TERSE
)
SAMPLING = Sampling(4, 0, temperature=0.0)


@dataclass(frozen=True)
class ModelDirectory:
    """A model's directory, whose tokenizer may get a template."""

    path: Path

    def load(self, template: str | None = None, **options: object) -> Runner:
        tokenizer = starting_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(self.path)
        return load_runner("auto", options_for(self.path, max_batch=4, **options))


def starting_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer that puts its start token before every text, as Llama's does."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    return tokenizer


def byte_ids(text: str) -> tuple[int, ...]:
    """Return the token ids of a text without any special token."""
    return tuple(byte_tokenizer()(text)["input_ids"])


@pytest.fixture
def causal(tmp_path: Path) -> ModelDirectory:
    write(llama, tmp_path)
    return ModelDirectory(tmp_path)


@pytest.fixture
def hrm_text(tmp_path: Path) -> ModelDirectory:
    write_tiny(tmp_path)
    return ModelDirectory(tmp_path)


def encoded(runner: Runner, prompt: Prompt, condition: str | None = None) -> Encoded:
    return runner.encode(Generate(prompt, SAMPLING, condition))


def tokenized(runner: Runner, task: Tokenize) -> Tokenized:
    """Return the answer to a task, after a check of its counts."""
    done = runner.encode(task).answer
    result = end_of(done, Tokenized)
    assert done is not None
    assert done.finish_reason == "tokenize"
    assert done.num_completion_tokens == 0
    assert done.num_prompt_tokens == len(result.ids)
    return result


def written(runner: Runner, prompt: Prompt) -> str:
    """Return the prompt as the model sees it, the names of special tokens included."""
    ids = tokenized(runner, Tokenize(prompt)).ids
    return end_of(runner.encode(Detokenize(ids)).answer, Detokenized).text


def test_a_tokenizers_own_template(causal: ModelDirectory) -> None:
    """A model's template is rendered as transformers renders it (B27).

    The generation prompt is included, and the ids of special tokens are the tokenizer's own.
    """
    runner = causal.load(BOS + TERSE)
    assert written(runner, TALK) == f"{BOS}[system]Be brief.[user]One?[assistant]1[user]Two?[me]"
    ids = encoded(runner, TALK).prompt_ids
    assert ids.count(1) == 1, "the start token is there twice"

    tokenizer = PreTrainedTokenizerFast.from_pretrained(causal.path)
    turns = [{"role": turn.role, "content": turn.content} for turn in TALK.messages]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    assert list(ids) == expected["input_ids"]


def test_without_a_template_the_marks_are_llama_3s(causal: ModelDirectory) -> None:
    """Without a template a dialogue is written as for Llama 3, after one start token."""
    runner = causal.load()
    assert written(runner, Chat((Turn("system", "Be brief."), USER))) == (
        f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokenized(runner, Tokenize(TALK)).ids.count(1) == 1
    assert encoded(runner, "Hi").prompt_ids.count(1) == 1

    # Dialogues are answered together as alone.
    tasks = [Generate(USER_ONLY, SAMPLING), Generate(TALK, SAMPLING)]
    answers = generate_all(runner, tasks)
    for task, answer in zip(tasks, answers, strict=True):
        assert generate_all(runner, [task]) == [answer]


def test_a_tokenizer_without_a_start_token() -> None:
    """A dialogue begins with its first header where the tokenizer has no start token."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert ChatTemplate(tokenizer).write(USER_ONLY).startswith("<|start_header_id|>user")


def test_the_operators_template_outranks_the_models(causal: ModelDirectory, tmp_path: Path) -> None:
    """The operator's template is used, and is part of the fingerprint.

    A worker with another template does not go on with a job that was begun.
    """
    file = tmp_path / "terse.jinja"
    file.write_text(TERSE)
    runner = causal.load("{{ 'no' }}", chat_template=str(file))
    assert written(runner, USER_ONLY) == "[user] Hi! [me]"

    options = options_for(causal.path, chat_template=str(file))
    before = fingerprint("causal", options)
    file.write_text(TERSE + " ")
    assert fingerprint("causal", options) != before


def test_a_models_own_setting_outranks_the_fleets(causal: ModelDirectory, tmp_path: Path) -> None:
    """The template of a model's entry is used before the template of the fleet."""
    fleet_template = tmp_path / "fleet.jinja"
    fleet_template.write_text("fleet: {{ messages[0].content }}")
    own_template = tmp_path / "own.jinja"
    own_template.write_text("own: {{ messages[0].content }}")
    entries = (
        ModelEntry(id="a", path=str(causal.path)),
        ModelEntry(id="b", path=str(causal.path), chat_template=str(own_template)),
    )

    with_fleets, with_own = load_models(
        Settings(models=entries, chat_template=str(fleet_template), device="cpu")
    )

    assert written(with_fleets.runner, USER_ONLY) == "fleet:  Hi! "
    assert written(with_own.runner, USER_ONLY) == "own:  Hi! "


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for %}", "cannot be used"),
        ("{{ 1 + 'a' }}", "cannot be used"),
        ("{{ nobody.name }}", "cannot be used"),
    ],
)
def test_a_template_that_cannot_work_is_refused_at_start(
    causal: ModelDirectory, template: str, complaint: str
) -> None:
    """A template that does not parse, or fails on an ordinary dialogue, is refused at the start."""
    with pytest.raises(ModelFormatError, match=complaint):
        causal.load(template)


def test_a_template_that_is_not_there(causal: ModelDirectory) -> None:
    """A template file that does not exist is refused at the start."""
    with pytest.raises(ModelFormatError, match="cannot be read"):
        causal.load(chat_template="nowhere.jinja")


def test_what_a_template_refuses_is_the_callers_fault(causal: ModelDirectory) -> None:
    """A dialogue that cannot be written is an invalid request, which names `messages`."""
    runner = causal.load(STRICT)
    with pytest.raises(InvalidRequest, match=r"refuses them: No system role\.") as caught:
        encoded(runner, TALK)
    assert caught.value.field == "messages"

    with pytest.raises(InvalidRequest, match="messages: at least one") as caught:
        encoded(runner, Chat(()))
    assert caught.value.field == "messages"

    too_long = Chat((Turn("user", "x" * 200),))
    with pytest.raises(ContextExceeded) as exceeded:
        runner.encode(Generate(too_long, SAMPLING, overflow="refuse"))
    assert exceeded.value.field == "messages"


def test_hrm_text_sees_a_dialogue_between_its_marks(hrm_text: ModelDirectory) -> None:
    """A lone turn is the prompt itself; several turns are named by their roles.

    Names of special tokens in them are plain text.
    """
    runner = hrm_text.load()
    assert encoded(runner, USER_ONLY) == encoded(runner, "Hi!")
    assert encoded(runner, USER_ONLY, "cot") == encoded(runner, "Hi!", "cot")

    with_system = Chat((Turn("system", "Be brief."), USER))
    assert encoded(runner, with_system) == encoded(runner, "Be brief.\n\nHi!")
    text = "Be brief.\n\nUser: One?\n\nAssistant: 1\n\nUser: Two?\n\nAssistant:"
    assert encoded(runner, TALK) == encoded(runner, text)

    with_token_name = encoded(runner, Chat((Turn("user", f"{BOS} x"),)))
    assert with_token_name == encoded(runner, f"{BOS} x")
    assert with_token_name.prompt_ids.count(1) == 1
    assert encoded(runner, USER_ONLY, "raw").prompt_ids == byte_ids("Hi!")


def test_hrm_texts_own_template_between_the_marks_or_with_them(hrm_text: ModelDirectory) -> None:
    """A prompt has one start token, whether the template writes the special tokens or not.

    A template that writes them writes the conditions, too.
    """
    runner = hrm_text.load(TERSE)
    assert encoded(runner, USER_ONLY) == encoded(runner, "[user] Hi! [me]")

    runner = hrm_text.load(f"{BOS}<|object_ref_end|>{{{{ messages[-1].content }}}}{EOQ}")
    assert written(runner, TALK) == f"{BOS}<|object_ref_end|>Two?{EOQ}"
    assert encoded(runner, TALK).prompt_ids.count(1) == 1
    with pytest.raises(InvalidRequest, match="leave `condition` out") as caught:
        encoded(runner, TALK, "cot")
    assert caught.value.field == "condition"


@pytest.mark.parametrize("is_causal", [False, True])
def test_act_brains_write_dialogues_as_causal_models_do(tmp_path: Path, is_causal: bool) -> None:
    """A dialogue to a brain without a template is written as for Llama 3, after one start token."""
    (tmp_path / "tokenizer").mkdir()
    write_bundle(tmp_path, Net(vocab=264, max_seq_len=160, causal=is_causal), tokenizer="tokenizer")
    starting_tokenizer().save_pretrained(tmp_path / "tokenizer")
    attention = "causal" if is_causal else "bidirectional"

    runner = load_runner("auto", options_for(tmp_path, attention=attention))

    assert written(runner, USER_ONLY).startswith(
        f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    )
    assert encoded(runner, USER_ONLY).prompt_ids.count(1) == 1


def test_token_ids_of_a_causal_model(causal: ModelDirectory) -> None:
    """The token ids are those that the model would read.

    The start token can be left out. A dialogue has the tokens that its template wrote.
    """
    runner = causal.load(TERSE)
    result = tokenized(runner, Tokenize("Hi", with_texts=True))
    assert result.ids == encoded(runner, "Hi").prompt_ids
    assert result.texts == (BOS, "H", "i")

    without_start = tokenized(runner, Tokenize("Hi", add_special_tokens=False))
    assert without_start.ids == result.ids[1:]

    assert tokenized(runner, Tokenize(TALK)).ids == encoded(runner, TALK).prompt_ids
    assert tokenized(runner, Tokenize((5, 6))).ids == (5, 6)
    # Longer than the context window.
    assert tokenized(runner, Tokenize("x" * 500)).ids[1:] == byte_ids("x" * 500)


def test_token_ids_of_hrm_text(hrm_text: ModelDirectory) -> None:
    """The token ids are those that the model would read, or the bare text's."""
    runner = hrm_text.load()
    for prompt in ("Hi", TALK):
        assert tokenized(runner, Tokenize(prompt)).ids == encoded(runner, prompt).prompt_ids
    assert tokenized(runner, Tokenize("Hi", add_special_tokens=False)).ids == byte_ids("Hi")


def test_text_of_token_ids(causal: ModelDirectory) -> None:
    """Token ids become text, with or without special tokens. Unknown ids are refused."""
    runner = causal.load()
    ids = tokenized(runner, Tokenize("Hé!")).ids

    for skip, expected in ((False, f"{BOS}Hé!"), (True, "Hé!")):
        done = runner.encode(Detokenize(ids, skip_special_tokens=skip)).answer
        assert end_of(done, Detokenized).text == expected
        assert done is not None
        assert done.num_prompt_tokens == len(ids)
    assert end_of(runner.encode(Detokenize(())).answer, Detokenized).text == ""

    for task in (Detokenize((264,)), Tokenize((1, -1))):
        with pytest.raises(InvalidRequest, match="from 0 to 263"):
            runner.encode(task)


def test_the_echo_has_all_of_it() -> None:
    """The echo has no tokenizer: a character is a token, and a dialogue is its lines."""
    runner = Echo(RunnerOptions("echo"))
    result = tokenized(runner, Tokenize("Hi", with_texts=True))
    assert result.ids == (72, 105)
    assert result.texts == ("H", "i")

    chat = Chat((Turn("system", "a"), Turn("user", "b")))
    assert encoded(runner, chat).prompt_ids == (ord("a"), ord("\n"), ord("b"))
    assert written(runner, "Hé") == "Hé"


def test_a_dialogue_in_which_nobody_asks() -> None:
    """A dialogue without a user's turn is its system prompt."""
    template = ChatTemplate(byte_tokenizer(), default=DIALOGUE)
    assert template.write(Chat((Turn("system", "Be brief."),))).strip() == "Be brief."
