"""The check on loading refuses networks that cannot be served right, each by name.

`test_causal` compares those that it lets through.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from tests.fixtures.worker.tiny_causal import (
    ALTERNATING,
    LONGEST,
    SHARED,
    VOCABULARY,
    gpt2,
    llama,
    write,
)
from worker.engine.runner import RunnerOptions
from worker.models.errors import ModelFormatError
from worker.runners import causal, causal_check, causal_net
from worker.runners.registry import load_runner

Build = Callable[[], PreTrainedModel]


def gpt_oss() -> PreTrainedModel:
    return GptOssForCausalLM(
        GptOssConfig(**SHARED, num_local_experts=4, layer_types=ALTERNATING, sliding_window=6)
    )


def gemma2() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SHARED, layer_types=ALTERNATING, sliding_window=6))


def llama4() -> PreTrainedModel:
    experts = {"num_local_experts": 2, "intermediate_size_mlp": 64, "moe_layers": []}
    return Llama4ForCausalLM(Llama4TextConfig(**SHARED, **experts, attention_chunk_size=4))


def lfm2() -> PreTrainedModel:
    return Lfm2ForCausalLM(Lfm2Config(**SHARED, layer_types=["conv", "full_attention"]))


def deepseek() -> PreTrainedModel:
    shared = SHARED | {"num_key_value_heads": 4, "head_dim": 8}
    sizes = {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
    }
    return DeepseekV3ForCausalLM(DeepseekV3Config(**shared, **sizes, first_k_dense_replace=2))


def bert() -> PreTrainedModel:
    return BertLMHeadModel(BertConfig(**SHARED))


def bloom() -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=48, n_layer=2, n_head=3))


def gptj() -> PreTrainedModel:
    return GPTJForCausalLM(
        GPTJConfig(vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=3, rotary_dim=4)
    )


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2))


def bart() -> PreTrainedModel:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, d_model=48, **sizes, **heads)
    )


REFUSED: list[tuple[Build, str]] = [
    (gpt_oss, "its attention has attention sinks"),
    (gemma2, "its attention has soft-capped attention scores"),
    (llama4, "it attends in chunks"),
    (lfm2, "layers of type conv"),
    (deepseek, "its keys and values differ in size"),
    (bert, "neither causal nor a sliding window"),
    (bloom, "takes no position ids"),
    (gptj, "its attention cannot be replaced"),
    (mamba, "layers of type linear_attention"),
    (bart, "it is an encoder-decoder"),
]


def opt() -> PreTrainedModel:
    """Build a network whose layers lie one deeper than in others, and whose positions start at
    two."""
    return OPTForCausalLM(OPTConfig(**SHARED, ffn_dim=64, word_embed_proj_dim=48))


def mistral() -> PreTrainedModel:
    """Build a network with a window that is shorter than the comparison on loading."""
    return MistralForCausalLM(MistralConfig(**SHARED, sliding_window=30))


def phi3() -> PreTrainedModel:
    """Build a network whose rope changes all frequencies when any row of the batch passes 32."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 3.0,
        "short_factor": [1.0] * 6,
        "long_factor": [2.0] * 6,
    }
    config = Phi3Config(**SHARED, original_max_position_embeddings=32, rope_parameters=rope)
    return Phi3ForCausalLM(config)


def load(path: Path, kind: str = "auto", **changes: Any) -> Any:
    return load_runner(kind, RunnerOptions(path=str(path), max_batch=2, page_size=4, **changes))


@pytest.mark.parametrize(
    ("build", "problem"), REFUSED, ids=[build.__name__ for build, _ in REFUSED]
)
def test_what_is_not_covered_is_refused_by_name(build: Build, problem: str, tmp_path: Path) -> None:
    """A mechanism that our attention does not have is refused, never served wrong (DESIGN 5)."""
    write(build, tmp_path)
    with pytest.raises(ModelFormatError, match=problem):
        load(tmp_path, "causal")


def test_opt_is_served(tmp_path: Path) -> None:
    """A network of another layout is served with its whole window."""
    write(opt, tmp_path)
    assert load(tmp_path).spec.context_window == LONGEST


def test_a_missing_tensor_fails_loudly(tmp_path: Path) -> None:
    """A missing tensor is refused (T6): transformers alone would start it at random."""
    write(gpt2, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(name for name in tensors if "mlp" in name)
    del tensors[names[0]]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelFormatError, match="missing keys"):
        load(tmp_path)


def test_other_scores_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that differs from the network's own shows in the comparison of logits."""
    write(llama, tmp_path)
    attend = causal_net.attend

    def attend_sharply(*args: Any, scale: float, **options: Any) -> torch.Tensor:
        return attend(*args, scale=scale * 1.5, **options)

    monkeypatch.setattr(causal_net, "attend", attend_sharply)
    with pytest.raises(ModelFormatError, match="logits differ"):
        load(tmp_path)


def test_a_lost_window_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that ignores a small window is refused: the comparison is longer than that."""
    write(mistral, tmp_path)
    assert load(tmp_path).spec.context_window == LONGEST, "a window does not limit the context"
    attend = causal_net.attend

    def attend_without_window(*args: Any, **options: Any) -> torch.Tensor:
        options["window"] = None
        return attend(*args, **options)

    monkeypatch.setattr(causal_net, "attend", attend_without_window)
    with pytest.raises(ModelFormatError, match="logits differ"):
        load(tmp_path)


def test_layers_that_mix_rows_are_refused(tmp_path: Path) -> None:
    """A layer that adds the token before each one is refused although its attention is ours.

    In a flat batch that token may be another row's.
    """
    model = write(llama, tmp_path)

    def add_the_one_before(_: object, __: object, out: torch.Tensor) -> torch.Tensor:
        return out + torch.nn.functional.pad(out[:, :-1], (0, 0, 1, 0))

    model.base_model.layers[0].mlp.register_forward_hook(add_the_one_before)
    with pytest.raises(ModelFormatError, match="logits differ"):
        causal.checked_net(model, LONGEST, torch.device("cpu"))


@pytest.mark.parametrize("window", [None, 3, 1000, 4000])
def test_masks_are_told_apart_whatever_their_size(window: int | None) -> None:
    """The mask that transformers asks for is tried pair by pair.

    Windows may be too large for a forward on loading.
    """
    if window is None:
        assert causal_check.is_ours(window, causal_mask_function, 4096) is True
    else:
        for size in (window - 1, window, window + 1):
            rule = sliding_window_causal_mask_function(size)
            assert causal_check.is_ours(window, rule, 4096) is (size == window)

    chunks = chunked_causal_mask_function(window or 2000, torch.zeros(1, dtype=torch.long))
    assert not causal_check.is_ours(window, chunks, 4096)
    assert not causal_check.is_ours(window, bidirectional_mask_function, 4096)


def test_a_rope_that_depends_on_the_batch_limits_the_window(tmp_path: Path) -> None:
    """A model with longrope is served up to its original length."""
    write(phi3, tmp_path)
    assert load(tmp_path).spec.context_window == 32
    assert load(tmp_path, context_window=20).spec.context_window == 20
