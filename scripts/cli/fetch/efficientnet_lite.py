"""EfficientNet-Lite0 as efficientnet-lite-pytorch has it, written as a directory of transformers.

A Lite network has no squeeze-and-excite layers, which transformers' EfficientNet always has. Here
these multiply by one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetForImageClassification
from transformers.models.efficientnet.image_processing_pil_efficientnet import (
    EfficientNetImageProcessorPil,
)

SIZE = 224
"""The height and width of a picture, in pixels, as the network sees it."""
_RESIZED = SIZE + 32
"""The shorter edge of a picture before its middle is cut out, as in the network's own evaluation."""
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_LABELS = "imagenet1k_label_to_names.json"
_SATURATED = 100.0
"""A number whose sigmoid is 1, to the last bit also in float32."""

_OUTER = {
    "_conv_stem": "efficientnet.embeddings.convolution",
    "_bn0": "efficientnet.embeddings.batchnorm",
    "_conv_head": "efficientnet.encoder.top_conv",
    "_bn1": "efficientnet.encoder.top_bn",
    "_fc": "classifier",
}
_OF_BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def convert(package: Path, target: Path) -> None:
    """Write the network and its image processor.

    `package` holds one `efficientnet-lite0-*.pth`, a state dict, and the names of ImageNet's
    classes. Raise ValueError if it does not, or if the tensors are no EfficientNet-Lite0's.
    """
    weights = _only(package, "efficientnet-lite0-*.pth")
    named = json.loads(_only(package, _LABELS).read_text(encoding="utf-8"))
    names = {int(number): name for number, name in named.items()}
    model = EfficientNetForImageClassification(config_of(names)).eval()
    # A pickle, of which tensors alone are read: no code in it runs.
    state: Mapping[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    loaded = model.load_state_dict(weights_of(state), strict=False)
    missing = [name for name in loaded.missing_keys if ".squeeze_excite." not in name]
    problems = sorted([*missing, *loaded.unexpected_keys])
    if problems:
        raise ValueError(f"tensors that are missing or left over: {', '.join(problems[:5])}")
    _let_all_through(model)

    model.save_pretrained(target)
    EfficientNetImageProcessorPil(
        size={"shortest_edge": _RESIZED},
        do_center_crop=True,
        crop_size={"height": SIZE, "width": SIZE},
        # (x - 127) / 128 of pixels from 0 to 255.
        rescale_factor=1 / 255,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        include_top=False,
    ).save_pretrained(target)


def _only(package: Path, pattern: str) -> Path:
    files = sorted(package.glob(f"**/{pattern}"))
    if len(files) != 1:
        raise ValueError(f"expected one {pattern}, found {len(files)}")
    return files[0]


def config_of(names: Mapping[int, str]) -> EfficientNetConfig:
    """Return the config of EfficientNet-Lite0 with classes of these names."""
    labels: dict[str, Any] = {
        "id2label": dict(names),
        "label2id": {name: number for number, name in names.items()},
    }
    return EfficientNetConfig(
        image_size=SIZE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        num_block_repeats=_REPEATS,
        hidden_act="relu6",
        hidden_dim=1280,
        # The least that there can be.
        squeeze_expansion_ratio=0.0,
        **labels,
    )


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names that transformers has for them."""
    weights = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("_blocks."):
            _, number, layer = layer.split(".")
            place = f"efficientnet.encoder.blocks.{number}.{_OF_BLOCK.get(layer, layer)}"
        else:
            place = _OUTER.get(layer, layer)
        weights[f"{place}.{kind}"] = tensor
    return weights


def _let_all_through(model: EfficientNetForImageClassification) -> None:
    """Let every squeeze-and-excite layer multiply by one."""
    with torch.no_grad():
        for block in model.efficientnet.encoder.blocks:
            layer: Any = block.squeeze_excite
            for convolution in (layer.reduce, layer.expand):
                convolution.weight.zero_()
                convolution.bias.zero_()
            layer.expand.bias.fill_(_SATURATED)
