"""Causal LMs in one GGUF file, written as a directory of transformers with weights in bfloat16."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def convert(package: Path, target: Path) -> None:
    """Write the model and the tokenizer of the only GGUF file of an unpacked package.

    Its rounded weights become plain numbers, which take more room. Raise ValueError if there is not
    exactly one such file, or if its tensors do not match the model.
    """
    files = sorted(package.glob("*/*.gguf"))
    if len(files) != 1:
        raise ValueError(f"expected one GGUF file, found {len(files)}")
    folder = files[0].parent
    name = files[0].name

    # `from_pretrained` reads GGUF too, but needs accelerate, and refuses to save what it has read.
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, gguf_file=name))
    tensors = load_gguf_checkpoint(
        str(files[0]), return_tensors=True, model_to_load=model, torch_dtype=torch.float32
    )["tensors"]
    loaded = model.load_state_dict(tensors, strict=False)
    missing = set(loaded.missing_keys)
    if model.config.tie_word_embeddings:
        missing -= set(model._tied_weights_keys or ())
    if missing or loaded.unexpected_keys:
        names = sorted(missing | set(loaded.unexpected_keys))
        raise ValueError(f"tensors that are missing or left over: {', '.join(names[:5])}")
    model.tie_weights()

    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
