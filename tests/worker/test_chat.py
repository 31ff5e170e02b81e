"""Dialogues and token ids of every language: templates, their marks, what they refuse, and there
and back again."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from scripts.train.train_sample import byte_tokenizer
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
class QueuePosition:
    """A model's directory, whose tokenizer may get a template."""

    path: Path

    def load(self, template: str | None = None, **options: object) -> Runner:
        tokenizer = starting_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(self.path)
        return load_runner("auto", options_for(self.path, max_batch=4, **options))


def starting_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts its start token before every text, as Llama's does."""
    tokenizer = byte_tokenizer()
    marks = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    tokenizer.backend_tokenizer.post_processor = marks
    return tokenizer


@pytest.fixture
def causal(tmp_path: Path) -> QueuePosition:
    write(llama, tmp_path)
    return QueuePosition(tmp_path)


@pytest.fixture
def hrm_text(tmp_path: Path) -> QueuePosition:
    write_tiny(tmp_path)
    return QueuePosition(tmp_path)


def encoded(runner: Runner, prompt: Prompt, condition: str | None = None) -> Encoded:
    return runner.encode(Generate(prompt, SAMPLING, condition))


def written(runner: Runner, prompt: Prompt) -> str:
    """The prompt as the model sees it, the names of special tokens included."""
    return end_of(
        runner.encode(Detokenize(tokens(runner, Tokenize(prompt))[0])).answer, Detokenized
    ).text


def test_a_tokenizers_own_template(causal: QueuePosition) -> None:
    """B27: rendered as transformers renders it, generation prompt included; ids of special tokens
    are its own."""
    runner = causal.load(BOS + TERSE)
    assert written(runner, TALK) == f"{BOS}[system]Be brief.[user]One?[assistant]1[user]Two?[me]"
    ids = encoded(runner, TALK).prompt_ids
    assert ids.count(1) == 1, "the start token is there twice"
    own = PreTrainedTokenizerFast.from_pretrained(causal.path)
    turns = [{"role": turn.role, "content": turn.content} for turn in TALK.messages]
    assert list(ids) == own.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]


def test_without_a_template_the_marks_are_llama_3s(causal: QueuePosition) -> None:
    """Behind one start token."""
    runner = causal.load()
    assert written(runner, Chat((Turn("system", "Be brief."), USER))) == (
        f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokens(runner, Tokenize(TALK))[0].count(1) == 1
    assert encoded(runner, "Hi").prompt_ids.count(1) == 1
    whole = generate_all(runner, [Generate(Chat((USER,)), SAMPLING), Generate(TALK, SAMPLING)])
    assert [generate_all(runner, [Generate(chat, SAMPLING)]) for chat in (Chat((USER,)), TALK)] == [
        [ids] for ids in whole
    ]


def test_a_tokenizer_without_a_start_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert ChatTemplate(tokenizer).write(Chat((USER,))).startswith("<|start_header_id|>user")


def test_the_operators_template_outranks_the_models(causal: QueuePosition, tmp_path: Path) -> None:
    """And with another one a worker does not go on with what was begun."""
    file = tmp_path / "terse.jinja"
    file.write_text(TERSE)
    assert (
        written(causal.load("{{ 'no' }}", chat_template=str(file)), Chat((USER,)))
        == "[user] Hi! [me]"
    )
    options = options_for(causal.path, chat_template=str(file))
    before = fingerprint("causal", options)
    file.write_text(TERSE + " ")
    assert fingerprint("causal", options) != before


def test_a_models_own_setting_outranks_the_fleets(causal: QueuePosition, tmp_path: Path) -> None:
    for name in ("fleet", "own"):
        (tmp_path / f"{name}.jinja").write_text(f"{name}: {{{{ messages[0].content }}}}")
    entries = (
        ModelEntry(id="a", path=str(causal.path)),
        ModelEntry(id="b", path=str(causal.path), chat_template=str(tmp_path / "own.jinja")),
    )
    loaded = load_models(
        Settings(models=entries, chat_template=str(tmp_path / "fleet.jinja"), device="cpu")
    )
    assert [written(model.runner, Chat((USER,))) for model in loaded] == [
        "fleet:  Hi! ",
        "own:  Hi! ",
    ]


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for %}", "cannot be used"),
        ("{{ 1 + 'a' }}", "cannot be used"),
        ("{{ nobody.name }}", "cannot be used"),
    ],
)
def test_a_template_that_cannot_work_is_refused_at_start(
    causal: QueuePosition, template: str, complaint: str
) -> None:
    with pytest.raises(ModelFormatError, match=complaint):
        causal.load(template)


def test_a_template_that_is_not_there(causal: QueuePosition) -> None:
    with pytest.raises(ModelFormatError, match="cannot be read"):
        causal.load(chat_template="nowhere.jinja")


def test_what_a_template_refuses_is_the_callers_fault(causal: QueuePosition) -> None:
    runner = causal.load(STRICT)
    with pytest.raises(InvalidRequest, match=r"refuses them: No system role\.") as caught:
        encoded(runner, TALK)
    assert caught.value.field == "messages"
    with pytest.raises(InvalidRequest, match="messages: at least one") as caught:
        encoded(runner, Chat(()))
    assert caught.value.field == "messages"
    with pytest.raises(ContextExceeded) as exceeded:
        runner.encode(Generate(Chat((Turn("user", "x" * 200),)), SAMPLING, overflow="refuse"))
    assert exceeded.value.field == "messages"


def test_hrm_text_sees_a_dialogue_between_its_marks(hrm_text: QueuePosition) -> None:
    """A lone turn is the prompt itself; several are told by name. Names of special tokens in them
    are plain text."""
    runner = hrm_text.load()
    assert encoded(runner, Chat((USER,))) == encoded(runner, "Hi!")
    assert encoded(runner, Chat((USER,)), "cot") == encoded(runner, "Hi!", "cot")
    assert encoded(runner, Chat((Turn("system", "Be brief."), USER))) == encoded(
        runner, "Be brief.\n\nHi!"
    )
    told = "Be brief.\n\nUser: One?\n\nAssistant: 1\n\nUser: Two?\n\nAssistant:"
    assert encoded(runner, TALK) == encoded(runner, told)
    assert encoded(runner, Chat((Turn("user", f"{BOS} x"),))) == encoded(runner, f"{BOS} x")
    assert encoded(runner, Chat((Turn("user", f"{BOS} x"),))).prompt_ids.count(1) == 1
    assert encoded(runner, Chat((USER,)), "raw").prompt_ids == tuple(
        byte_tokenizer()("Hi!")["input_ids"]
    )


def test_hrm_texts_own_template_between_the_marks_or_with_them(hrm_text: QueuePosition) -> None:
    """One boq in any case; where the template writes the marks, it writes the conditions too."""
    runner = hrm_text.load(TERSE)
    assert encoded(runner, Chat((USER,))) == encoded(runner, "[user] Hi! [me]")
    runner = hrm_text.load(f"{BOS}<|object_ref_end|>{{{{ messages[-1].content }}}}{EOQ}")
    assert written(runner, TALK) == f"{BOS}<|object_ref_end|>Two?{EOQ}"
    assert encoded(runner, TALK).prompt_ids.count(1) == 1
    with pytest.raises(InvalidRequest, match="leave `condition` out") as caught:
        encoded(runner, TALK, "cot")
    assert caught.value.field == "condition"


@pytest.mark.parametrize("is_causal", [False, True])
def test_act_brains_write_dialogues_as_causal_models_do(tmp_path: Path, is_causal: bool) -> None:
    (tmp_path / "tokenizer").mkdir()
    write_bundle(tmp_path, Net(vocab=264, max_seq_len=160, causal=is_causal), tokenizer="tokenizer")
    starting_tokenizer().save_pretrained(tmp_path / "tokenizer")
    runner = load_runner(
        "auto", options_for(tmp_path, attention="causal" if is_causal else "bidirectional")
    )
    assert written(runner, Chat((USER,))).startswith(
        f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    )
    assert encoded(runner, Chat((USER,))).prompt_ids.count(1) == 1


def tokens(runner: Runner, task: Tokenize) -> tuple[tuple[int, ...], tuple[str, ...]]:
    answer = runner.encode(task).answer
    found = end_of(answer, Tokenized)
    assert answer is not None
    assert (answer.finish_reason, answer.num_completion_tokens) == ("tokenize", 0)
    assert answer.num_prompt_tokens == len(found.ids)
    return found.ids, found.texts


def test_token_ids_of_a_causal_model(causal: QueuePosition) -> None:
    """Those that it would read; the start token can be left out; a dialogue has what its template
    wrote."""
    runner = causal.load(TERSE)
    ids, texts = tokens(runner, Tokenize("Hi", with_texts=True))
    assert ids == encoded(runner, "Hi").prompt_ids
    assert texts == (BOS, "H", "i")
    assert tokens(runner, Tokenize("Hi", add_special_tokens=False))[0] == ids[1:]
    assert tokens(runner, Tokenize(TALK))[0] == encoded(runner, TALK).prompt_ids
    assert tokens(runner, Tokenize((5, 6)))[0] == (5, 6)
    assert tokens(runner, Tokenize("x" * 500))[0][1:] == tuple(
        byte_tokenizer()("x" * 500)["input_ids"]
    )


def test_token_ids_of_hrm_text(hrm_text: QueuePosition) -> None:
    runner = hrm_text.load()
    for prompt in ("Hi", TALK):
        assert tokens(runner, Tokenize(prompt))[0] == encoded(runner, prompt).prompt_ids
    assert tokens(runner, Tokenize("Hi", add_special_tokens=False))[0] == tuple(
        byte_tokenizer()("Hi")["input_ids"]
    )


def test_text_of_token_ids(causal: QueuePosition) -> None:
    runner = causal.load()
    ids = tokens(runner, Tokenize("Hé!"))[0]
    for skip, expected in ((False, f"{BOS}Hé!"), (True, "Hé!")):
        answer = runner.encode(Detokenize(ids, skip_special_tokens=skip)).answer
        assert end_of(answer, Detokenized).text == expected
        assert answer is not None and answer.num_prompt_tokens == len(ids)
    assert end_of(runner.encode(Detokenize(())).answer, Detokenized).text == ""
    for task in (Detokenize((264,)), Tokenize((1, -1))):
        with pytest.raises(InvalidRequest, match="from 0 to 263"):
            runner.encode(task)


def test_the_echo_has_all_of_it() -> None:
    """Without a tokenizer: a character is a token, a dialogue is its words."""
    runner = Echo(RunnerOptions("echo"))
    assert tokens(runner, Tokenize("Hi", with_texts=True)) == ((72, 105), ("H", "i"))
    assert encoded(runner, Chat((Turn("system", "a"), Turn("user", "b")))).prompt_ids == tuple(
        map(ord, "a\nb")
    )
    assert written(runner, "Hé") == "Hé"


def test_a_dialogue_in_which_nobody_asks() -> None:
    template = ChatTemplate(byte_tokenizer(), default=DIALOGUE)
    assert template.write(Chat((Turn("system", "Be brief."),))).strip() == "Be brief."
