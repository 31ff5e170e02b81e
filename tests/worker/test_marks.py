"""Marks that a tokenizer adds are no text, in scores, prompts and rolling texts.

The tests run with tokenizers of every kind. The rule is lm-evaluation-harness's, written out here;
the numbers are those of the network's own forward.
"""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from shared.errors import InvalidRequest
from shared.messages import (
    Chat,
    Detokenize,
    Embed,
    Generate,
    Read,
    Sampling,
    Score,
    Task,
    Tokenize,
    Tokenized,
    Turn,
)
from shared.tasks.vectors import unpack
from tests.fixtures.worker.stepping import embed_all, end_of, generate_all, run, score_all
from tests.fixtures.worker.tiny_causal import greedy, log_likelihood
from tests.fixtures.worker.tokenizer_kinds import KINDS, MARKS, SIZE, tokenizer_of
from worker.engine.runner import Runner, RunnerOptions
from worker.models.weights import start_ids
from worker.runners.causal import CausalLanguage
from worker.runners.registry import load_runner
from worker.text.chat import ChatTemplate
from worker.text.vocabulary import Vocabulary

CONTEXT = "hello world"
CONTINUATIONS = (" paris", " play", " ten", ".", " hello paris")
ONCE = Sampling(4, seed=0, temperature=0.0)

Model = tuple[Runner, LlamaForCausalLM, PreTrainedTokenizerFast]


def own_marks(marks: str) -> tuple[list[int], list[int]]:
    """Return the ids that stand before a text, and those behind it."""
    start = []
    end = []
    if marks in ("start", "both"):
        start.append(0)
    if marks in ("end", "both"):
        end.append(1)
    return start, end


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def split(
    tokenizer: PreTrainedTokenizerFast, marks: str, context: str, tail: str
) -> tuple[list[int], list[int]]:
    """Return the ids of a context and of its continuation, as lm-evaluation-harness cuts them."""
    start, _ = own_marks(marks)
    bare = context.rstrip()
    context_ids = start + plain(tokenizer, bare)
    whole = start + plain(tokenizer, context + tail)
    return context_ids, whole[len(context_ids) :]


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_is_what_follows_the_contexts_ids(kind: str, marks: str) -> None:
    """A continuation is the ids of the whole text behind those of the context.

    A start mark stands before every text, and an end mark only behind a text that is embedded.
    """
    tokenizer = tokenizer_of(kind, marks)
    vocabulary = Vocabulary(tokenizer, SIZE, ChatTemplate(tokenizer))
    language = CausalLanguage(vocabulary, start_ids(tokenizer), frozenset())
    start, end = own_marks(marks)
    bare_ids = tuple(plain(tokenizer, CONTEXT))
    opened = (*start, *bare_ids)
    assert tokenizer(CONTEXT)["input_ids"] == [*opened, *end]

    for context in (CONTEXT, f"{CONTEXT}  ", "hel", "b"):
        for tail in (*CONTINUATIONS, "lo", "c"):
            encoded = language.encode(Score(context, (tail,)), 96)

            # A context without ids is the start mark; a tail without ids is read alone.
            context_ids, tail_ids = split(tokenizer, marks, context, tail)
            expected_tail = tail_ids or plain(tokenizer, tail)
            assert encoded.prompt_ids == tuple(context_ids or [0])
            assert encoded.continuations[0] == tuple(expected_tail), (context, tail)

    empty = language.encode(Score("", (CONTEXT,)), 96)
    assert empty.prompt_ids == (0,)
    assert empty.continuations == (bare_ids,)

    rolling = language.encode(Score("", (CONTEXT,), rolling=True), 96)
    assert rolling.prompt_ids == (0,)
    assert rolling.continuations == (bare_ids,)

    assert language.encode(Generate(CONTEXT, ONCE), 96).prompt_ids == opened
    reading = language.encode(Read(CONTEXT), 96)
    assert (*reading.prompt_ids, *reading.continuations[0]) == opened
    answer = language.encode(Tokenize(CONTEXT), 96).answer
    assert end_of(answer, Tokenized).ids == opened
    assert language.encode(Embed(CONTEXT), 96).prompt_ids == tuple(tokenizer(CONTEXT)["input_ids"])


@pytest.mark.parametrize("marks", MARKS)
def test_a_context_without_tokens_takes_nothing_from_what_follows(marks: str) -> None:
    """A context of characters that the normalizer drops leaves the continuation whole."""
    tokenizer = tokenizer_of("word_piece", marks)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    language = CausalLanguage(
        Vocabulary(tokenizer, SIZE, ChatTemplate(tokenizer)), start_ids(tokenizer), frozenset()
    )
    for context in ("\x01", "\u200b "):
        assert plain(tokenizer, context) == []
        encoded = language.encode(Score(context, ("paris play",)), 96)
        assert encoded.prompt_ids == (0,)
        assert encoded.continuations == (tuple(plain(tokenizer, "paris play")),)


@pytest.mark.parametrize("words", [["<s>", "</s>", "zz"], ["<s>", "</s>", "a"]])
@pytest.mark.parametrize("marks", MARKS)
def test_start_marks_of_tokenizers_that_know_little(words: list[str], marks: str) -> None:
    """Start marks are found with a tokenizer of a single word.

    It may know none of the texts that are tried, and it writes an unknown word as a mark.
    """
    vocab = {word: number for number, word in enumerate(words)}
    bare = Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    ids: list[Any] = [("<s>", 0), ("</s>", 1)]
    bare.post_processor = processors.TemplateProcessing(
        single=MARKS[marks], pair=None, special_tokens=ids
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<s>"
    )
    vocabulary = Vocabulary(tokenizer, 3, ChatTemplate(tokenizer))
    start, _ = own_marks(marks)

    assert vocabulary.open_ids(words[2], "prompt") == (*start, 2)
    assert vocabulary.open_ids("", "prompt") == tuple(start)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    return path, model


@pytest.fixture(
    params=[
        ("word_piece", "both"),
        ("metaspace", "end"),
        ("byte_level", "start"),
        ("llama", "none"),
    ]
)
def served(
    request: pytest.FixtureRequest, llama: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> Model:
    kind, marks = request.param
    path, model = llama
    tokenizer_of(kind, marks).save_pretrained(tmp_path)
    options = RunnerOptions(str(path), tokenizer_path=str(tmp_path), max_batch=4, page_size=4)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    # The tokenizer's name tells the tests which marks it adds.
    tokenizer.name_or_path = marks
    return load_runner("causal", options), model, tokenizer


def test_scores_are_those_of_the_networks_own_forward(served: Model) -> None:
    """Scores of continuations and of a rolling text are the network's own log-likelihoods."""
    runner, model, tokenizer = served
    [scores] = score_all(runner, [Score(CONTEXT, CONTINUATIONS)])

    for tail, score in zip(CONTINUATIONS, scores, strict=True):
        context_ids, tail_ids = split(tokenizer, tokenizer.name_or_path, CONTEXT, tail)
        expected = log_likelihood(model, tuple(context_ids), tuple(tail_ids))
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert score.num_tokens == len(tail_ids)
    first_three = {round(score.log_likelihood, 3) for score in scores[:3]}
    assert len(first_three) == 3, "the scores hardly differ, so this proves little"

    [[rolling]] = score_all(runner, [Score("", (CONTEXT,), rolling=True)])
    expected = log_likelihood(model, (0,), tuple(plain(tokenizer, CONTEXT)))
    assert rolling.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_answers_and_readings_go_on_with_the_prompts_text(served: Model) -> None:
    """A response continues the prompt without its end mark; a reading has the same ids."""
    runner, model, tokenizer = served
    start, _ = own_marks(tokenizer.name_or_path)
    prompt = (*start, *plain(tokenizer, CONTEXT))

    [ids] = generate_all(runner, [Generate(CONTEXT, ONCE)])
    assert ids == greedy(model, prompt, 4)

    [reading] = run(runner, [Read(CONTEXT)], [[]])
    assert reading.ids == prompt
    # Nothing predicts the first token, so it has no log-probability.
    logprobs = []
    for token in reading.logprobs[1:]:
        if token.logprob is not None:
            logprobs.append(token.logprob)
    expected = log_likelihood(model, prompt[:1], prompt[1:])
    assert math.fsum(logprobs) == pytest.approx(expected, abs=1e-4)


def test_vectors_see_all_marks(served: Model) -> None:
    """A vector is the mean state of the text with all its marks, as transformers encodes it."""
    runner, model, tokenizer = served

    [vector] = embed_all(runner, [Embed(CONTEXT, normalize=False)])

    ids = torch.tensor([tokenizer(CONTEXT)["input_ids"]])
    with torch.no_grad():
        states = model.model(ids).last_hidden_state[0]
    assert torch.tensor(unpack(vector)) == pytest.approx(states.mean(0), rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module", params=["causal", "encoder"])
def narrow(
    request: pytest.FixtureRequest,
    llama: tuple[Path, LlamaForCausalLM],
    tmp_path_factory: pytest.TempPathFactory,
) -> Runner:
    """Return a model whose tokenizer has tokens that its network does not know."""
    path = tmp_path_factory.mktemp("narrow")
    tokenizer = tokenizer_of("word_piece", "both")
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(SIZE)])
    tokenizer.save_pretrained(path)
    if request.param == "causal":
        options = RunnerOptions(str(llama[0]), tokenizer_path=str(path), max_batch=4)
        return load_runner("causal", options)

    config = BertConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(path)
    return load_runner("encoder", RunnerOptions(str(path), max_batch=4))


STRANGE = f"a <extra_{SIZE - 1}> b"
REFUSED: list[tuple[Task, str]] = [
    (Generate(STRANGE, ONCE), "prompt"),
    (Generate(Chat((Turn("user", STRANGE),)), ONCE), "messages"),
    (Generate("a", Sampling(1, seed=0, logit_bias=((SIZE, 1.0),))), "logit_bias"),
    (Generate("a", Sampling(1, seed=0, stop_ids=(SIZE,), min_tokens=1)), "stop_token_ids"),
    (Score(STRANGE, ("a",)), "prompts"),
    (Score("a", (STRANGE,)), "continuations"),
    (Score((4,), ("a", STRANGE)), "continuations"),
    (Score("", (STRANGE,), rolling=True), "prompts"),
    (Read(STRANGE), "prompt"),
    (Tokenize(STRANGE), "prompt"),
    (Embed(STRANGE), "input"),
    (Embed((SIZE,)), "input"),
    (Detokenize((SIZE,)), "tokens"),
]


READ_BY_ENCODERS = Embed | Tokenize | Detokenize


def test_an_id_that_the_network_does_not_know_is_named_with_its_field(narrow: Runner) -> None:
    """An id beyond the network's vocabulary is refused; the error names the id and the field.

    Where the id comes from a text, that piece of the text is named too.
    """
    pattern = (
        rf"token ids from 0 to {SIZE - 1} are expected, got (\d+)( for '<extra_{SIZE - 1}>')?\."
    )
    for task, field in REFUSED:
        if narrow.spec.runner == "encoder" and not isinstance(task, READ_BY_ENCODERS):
            continue

        with pytest.raises(InvalidRequest) as caught:
            narrow.encode(task)

        assert caught.value.field == field
        named = re.fullmatch(f"{field}: {pattern}", caught.value.message)
        assert named is not None, caught.value.message
        token_id = int(named[1])
        assert token_id >= SIZE
        # In these tasks the id `SIZE` is always given as a number, others as a text.
        assert (token_id == SIZE) == (named[2] is None)
