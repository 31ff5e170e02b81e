"""Causal LMs through our pages against transformers' own generate and forward."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from scripts.train_sample import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from tests.worker.stepping import generate_all, score_all
from worker.models.errors import ModelFormatError
from worker.registry import load_runner
from worker.runners import causal
from worker.runners.base import RunnerOptions

PROMPTS = ["Hello", "Once upon a time", "x", "The capital of France is"]
VOCABULARY = 264


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=96, n_embd=48, n_layer=2, n_head=3))


def llama() -> PreTrainedModel:
    """Grouped queries and tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=96,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture(scope="module", params=[gpt2, llama], ids=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("causal")
    model = request.param().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path, model


def options(path: Path) -> RunnerOptions:
    return RunnerOptions(path=str(path), max_batch=4, page_size=4)


def test_greedy_batch_equals_transformers_generate(tiny: tuple[Path, PreTrainedModel]) -> None:
    """Unequal prompts decoded together over pages equal transformers' generate on each alone (T3, B59)."""
    runner = load_runner("auto", options(tiny[0]))
    tasks = [Generate(text, Sampling(max_tokens=12, seed=0, temperature=0.0)) for text in PROMPTS]
    for task, got in zip(tasks, generate_all(runner, tasks), strict=True):
        prompt = torch.tensor([runner.encode(task).prompt_ids])
        out = tiny[1].generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
        assert got == out[0, prompt.shape[1] :].tolist()


def test_scores_equal_the_models_own_forward(tiny: tuple[Path, PreTrainedModel]) -> None:
    """A35: sum of the continuation's log-probabilities given the context."""
    runner = load_runner("auto", options(tiny[0]))
    tasks = [Score("Hello", (" world", "!")), Score("x", (" = 3",))]
    for task, scores in zip(tasks, score_all(runner, tasks), strict=True):
        encoded = runner.encode(task)
        for tail, score in zip(encoded.continuations, scores, strict=True):
            ids = torch.tensor([[*encoded.prompt_ids, *tail]])
            with torch.no_grad():
                own = tiny[1](ids).logits[0].double().log_softmax(-1)
            start = len(encoded.prompt_ids) - 1
            expected = sum(float(own[start + i, token]) for i, token in enumerate(tail))
            assert score.log_likelihood == pytest.approx(expected, abs=1e-3)


def test_a_missing_tensor_fails_loudly(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    """T6 for Hugging Face models: transformers alone would start them at random."""
    for file in tiny[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    victim = sorted(name for name in tensors if "mlp" in name)[0]
    del tensors[victim]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match="missing keys"):
        load_runner("auto", options(tmp_path))


def test_a_rule_our_attention_does_not_know_is_refused(
    tiny: tuple[Path, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check on loading: an attention that differs from the network's own is never served."""
    real = causal.attend
    monkeypatch.setattr(causal, "attend", lambda *args: real(*args[:-2], args[-2] * 1.5))
    with pytest.raises(ModelFormatError, match="logits differ"):
        causal.load(options(tiny[0]))


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Characters and the merges `bc`, `ab` and ` a`, in that order of strength."""
    vocab = {text: number for number, text in enumerate(["</s>", "a", "b", "c", " ", "ab", "bc", " a"])}
    model = models.BPE(vocab=vocab, merges=[("b", "c"), ("a", "b"), (" ", "a")])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("c", "bc", ("c", ["bc"])),
        ("c ", "a", ("c", [" a"])),  # the space at the end moves over, and merges
        ("c  ", "b", ("c", [" ", " ", "b"])),
        ("ab", "c", ("ab", ["bc"])),  # cut behind as many tokens as the context has alone
        ("a", "b", ("a", ["b"])),  # swallowed by the context: read by itself
        ("", " a", ("</s>", [" a"])),
        ("  ", "a", ("</s>", [" ", " a"])),
    ],
)
def test_continuations_are_cut_as_lm_evaluation_harness_does(
    context: str, continuation: str, expected: tuple[str, list[str]]
) -> None:
    """Its rule, by hand, on a tokenizer that merges across the border."""
    tokenizer = merging_tokenizer()
    language = causal.CausalLanguage(tokenizer, 8, frozenset())
    encoded = language.encode(Score(context, (continuation,)), 96)
    assert "".join(tokenizer.convert_ids_to_tokens(encoded.prompt_ids)) == expected[0]
    assert tokenizer.convert_ids_to_tokens(encoded.continuations[0]) == expected[1]
