"""Pipelines for tasks that transformers' own pipelines do not do."""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.utils.generic import ModelOutput

from shared.errors import InvalidRequest
from worker.media.sound import Samples
from worker.tasks.labels import scores_of
from worker.tasks.watch import Watch

_MAX_TOKENS = 256
"""The most tokens of an answer, where neither the request nor the network's files say."""
_MOST_TOKENS = 65_536
"""The most tokens of a text, where no file of the network says: tokenizers then say 10^30."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_POSITIONS = "max_position_embeddings"
_LIBRARY_MAX_LENGTH = 20
"""The limit of a network whose files name none."""


Parameters = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""The parameters of a pipeline's three steps: preprocess, forward, postprocess."""


class OwnPipeline:
    """Base of pipelines: all that runners ask of one, and nothing that transformers' own do beside.

    `preprocess` makes tensors of an input, of one row each, `compute` runs the network on rows of
    several inputs, and `postprocess` reads the row of one of them. One with `is_chunked` makes
    several chunks of an input, the last of which has `is_last`. `watch` is that over the call to
    come, None where nobody watches.
    """

    is_chunked = False
    watch: Watch | None = None

    def __init__(
        self,
        *,
        task: str,
        model: Any,
        device: torch.device,
        tokenizer: Any = None,
        image_processor: Any = None,
        feature_extractor: Any = None,
    ) -> None:
        self.task = task
        self.model = model
        self.device = device
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.feature_extractor = feature_extractor

    def compute(self, *inputs: Any, **parameters: Any) -> dict[str, Any]:
        raise NotImplementedError

    def write(self, **inputs: Any) -> Tensor:
        """Return the ids [B, T] that the network writes."""
        if self.watch is not None:
            inputs["stopping_criteria"] = self.watch.over_writing(self.tokenizer)
        ids: Tensor = self.model.generate(**inputs)
        return ids

    @torch.inference_mode()
    def forward(self, inputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        output = self.compute(_moved(inputs, self.device), **parameters)
        return _moved(output, torch.device("cpu"))


def _moved(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    moved = {}
    for name, value in values.items():
        moved[name] = value.to(device) if isinstance(value, Tensor) else value
    return moved


class TextWriter(OwnPipeline):
    """Writes a text behind a text: an encoder reads it, a decoder writes greedily or by beams.

    How it writes is what `generation_config.json` says.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._lock = Lock()
        self._own_source = getattr(self.tokenizer, "src_lang", None)

    def _sanitize_parameters(
        self,
        prefix: str = "",
        source: str | None = None,
        target: str | None = None,
        max_tokens: int | None = None,
    ) -> Parameters:
        forward: dict[str, Any] = {"max_tokens": max_tokens}
        if target is not None:
            forward["first_token"] = self._token_of(target)
        return {"prefix": prefix, "source": source}, forward, {}

    @property
    def is_multilingual(self) -> bool:
        """True if tokens of the tokenizer tell the languages of a text and its translation."""
        return hasattr(self.tokenizer, "src_lang")

    def preprocess(self, given: str, prefix: str, source: str | None) -> Any:
        # The language is a state of the tokenizer, which reads texts in several threads.
        with self._lock:
            if source is not None:
                self._token_of(source)
            if self.is_multilingual:
                # Also without a source: the last text may have had another.
                self.tokenizer.src_lang = source or self._own_source
            return self.tokenizer(
                prefix + given,
                truncation=True,
                max_length=_window_of(self.tokenizer, self.model.config),
                return_tensors="pt",
            )

    def compute(
        self,
        inputs: Any,
        max_tokens: int | None,
        first_token: int | None = None,
    ) -> dict[str, Tensor]:
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        options = length_options(self.model, max_tokens)
        if first_token is not None:
            options["forced_bos_token_id"] = first_token
        return {"ids": self.write(**read, **options)}

    def postprocess(self, output: dict[str, Tensor]) -> str:
        text: str = self.tokenizer.decode(output["ids"][0], skip_special_tokens=True)
        return text

    @property
    def languages(self) -> dict[str, int]:
        """The languages of a multilingual tokenizer, and the token of each."""
        # Of M2M100 and mBART. NLLB's codes are its special tokens.
        if hasattr(self.tokenizer, "lang_code_to_id"):
            return dict(self.tokenizer.lang_code_to_id)
        names = self.tokenizer.extra_special_tokens
        return {name: int(self.tokenizer.convert_tokens_to_ids(name)) for name in names}

    def _token_of(self, language: str) -> int:
        """Return the token of a language. Raise InvalidRequest for one that is not known."""
        known = self.languages
        if language not in known:
            some = ", ".join(list(known)[:20])
            raise InvalidRequest(
                f"This model does not know the language {language!r}, but {some}.", field="target"
            )
        return known[language]


class Speaker(OwnPipeline):
    """Speaks a text (VITS). Its chance is the seed's alone, so each text is spoken by itself."""

    @property
    def rate(self) -> int:
        """The number of samples a second."""
        return int(self.model.config.sampling_rate)

    def _sanitize_parameters(
        self, seed: int = 0, speed: float = 1.0, speaker: int | None = None
    ) -> Parameters:
        return {}, {"seed": seed, "speed": speed, "speaker": speaker}, {}

    def preprocess(self, given: str) -> Any:
        inputs = self.tokenizer(given, return_tensors="pt")
        if not inputs["input_ids"].numel():
            raise InvalidRequest("The text has nothing that this model can speak.", field="input")
        return inputs

    def compute(
        self, inputs: Any, seed: int, speed: float, speaker: int | None
    ) -> dict[str, Tensor]:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output = self.model(**inputs, speaking_rate=speed, speaker_id=speaker)
        return {"samples": output.waveform}

    def postprocess(self, output: dict[str, Tensor]) -> tuple[Samples, int]:
        """Return the samples [n], and their number a second."""
        return output["samples"][0].float().numpy(), self.rate


class Captioner(OwnPipeline):
    """Writes what a picture shows."""

    def _sanitize_parameters(
        self, prompt: str | None = None, max_tokens: int | None = None
    ) -> Parameters:
        return {"prompt": prompt}, {"max_tokens": max_tokens}, {}

    def preprocess(self, given: Any, prompt: str | None) -> Any:
        inputs = dict(self.image_processor(images=given, return_tensors="pt"))
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        if prompt is not None:
            tokens = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
            start = getattr(self.model.config, "decoder_start_token_id", None)
            if start is None:
                start = self.tokenizer.bos_token_id or self.tokenizer.cls_token_id
            inputs["prompt_ids"] = torch.cat((torch.tensor([[start]]), tokens["input_ids"]), dim=1)
        return inputs

    def compute(self, inputs: Any, max_tokens: int | None) -> dict[str, Tensor]:
        num_given = inputs["prompt_ids"].shape[1] if "prompt_ids" in inputs else 1
        options: dict[str, Any] = length_options(self.model, max_tokens, num_given)
        if "prompt_ids" in inputs:
            name = "decoder_input_ids" if self.model.config.is_encoder_decoder else "input_ids"
            options[name] = inputs["prompt_ids"]
        return {"ids": self.write(pixel_values=inputs["pixel_values"], **options)}

    def postprocess(self, output: dict[str, Tensor]) -> str:
        text: str = self.tokenizer.decode(output["ids"][0], skip_special_tokens=True)
        return text.strip()


class Forecaster(OwnPipeline):
    """Continues series of numbers (TimesFM), of any lengths together.

    What lies beyond the network's own horizon is found by taking its forecast for the past.
    """

    def _sanitize_parameters(self, horizon: int = 1) -> Parameters:
        return {}, {"horizon": horizon}, {}

    def preprocess(self, given: tuple[float, ...]) -> dict[str, Tensor]:
        return {"values": torch.tensor([given], dtype=self.model.dtype)}

    @staticmethod
    def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
        """Return the inputs of a batch: series of different lengths have no common tensor."""
        return {"values": [item["values"][0] for item in items]}

    def compute(self, inputs: Any, horizon: int) -> dict[str, Tensor]:
        past = [values.to(self.device) for values in inputs["values"]]
        means: list[Tensor] = []
        quantiles: list[Tensor] = []
        num_known = 0
        while num_known < horizon:
            output = self.model(past_values=past)
            means.append(output.mean_predictions)
            quantiles.append(output.full_predictions[..., 1:])
            num_known += output.mean_predictions.shape[1]
            past = [
                torch.cat((values, mean))
                for values, mean in zip(past, output.mean_predictions, strict=True)
            ]
        return {
            "means": torch.cat(means, dim=1)[:, :horizon],
            "quantiles": torch.cat(quantiles, dim=1)[:, :horizon],
        }

    def postprocess(self, output: dict[str, Tensor]) -> dict[str, Any]:
        """Return the expected `values` [H], and `quantiles` [Q, H] of the `levels` [Q]."""
        return {
            "values": output["means"][0].float().tolist(),
            "levels": [float(level) for level in self.model.config.quantiles],
            "quantiles": output["quantiles"][0].float().T.tolist(),
        }


class VideoClassifier(OwnPipeline):
    """Labels the frames of a video."""

    def _sanitize_parameters(self, top_k: int | None = None) -> Parameters:
        return {}, {}, {"top_k": top_k}

    def preprocess(self, given: list[Any]) -> dict[str, Tensor]:
        inputs = self.image_processor(given, return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"].to(self.model.dtype)}

    def compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.model(**inputs).logits.float()}

    def postprocess(self, output: dict[str, Tensor], top_k: int | None) -> list[dict[str, Any]]:
        """Return the likeliest labels with their scores."""
        [scores] = scores_of(output["logits"], self.model.config)
        names = self.model.config.id2label
        labels = [{"label": names[index], "score": score} for index, score in enumerate(scores)]
        labels.sort(key=lambda label: -label["score"])
        return labels[:top_k]


class ImageQuestionAnswerer(OwnPipeline):
    """Answers a question about a picture: with one of its labels (ViLT), or in writing (BLIP)."""

    def _sanitize_parameters(self, top_k: int = 1) -> Parameters:
        return {}, {}, {"top_k": top_k}

    def preprocess(self, given: dict[str, Any]) -> dict[str, Tensor]:
        window = _window_of(self.tokenizer, self.model.config)
        text = self.tokenizer(
            given["question"], truncation=True, max_length=window, return_tensors="pt"
        )
        inputs = {**text, **self.image_processor(images=given["image"], return_tensors="pt")}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return inputs

    def compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.model.can_generate():
            # Several answers may be right, so each has a probability of its own.
            return {"scores": self.model(**inputs).logits.float().sigmoid()}
        read = {name: inputs[name] for name in inputs if name != "token_type_ids"}
        return {"ids": self.write(**read, **length_options(self.model, None))}

    def postprocess(self, output: dict[str, Tensor], top_k: int) -> list[tuple[str, float | None]]:
        """Return the likeliest answers with their scores, or the one that was written."""
        if "ids" in output:
            text = self.tokenizer.decode(output["ids"][0], skip_special_tokens=True)
            return [(text.strip(), None)]
        scores = output["scores"][0]
        values, labels = scores.topk(min(top_k, len(scores)))
        names = self.model.config.id2label
        found = zip(labels.tolist(), values.tolist(), strict=True)
        return [(names[label], value) for label, value in found]


class ObjectFinder(OwnPipeline):
    """Finds what labels name in a picture (OWL-ViT, OWLv2), all labels in one call.

    A label's scores do not depend on the others.
    """

    def _sanitize_parameters(self, labels: tuple[str, ...], threshold: float) -> Parameters:
        return {"labels": labels}, {}, {"labels": labels, "threshold": threshold}

    def preprocess(self, given: Any, labels: tuple[str, ...]) -> dict[str, Tensor]:
        text = self.tokenizer(
            list(labels),
            padding=True,
            truncation=True,
            max_length=_window_of(self.tokenizer, self.model.config),
            return_tensors="pt",
        )
        image = self.image_processor(given, return_tensors="pt")
        return {
            "pixel_values": image["pixel_values"].to(self.model.dtype),
            "size": torch.tensor([[given.height, given.width]]),
            "input_ids": text["input_ids"][None],
            "attention_mask": text["attention_mask"][None],
        }

    def compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        output = self.model(
            pixel_values=inputs["pixel_values"],
            input_ids=inputs["input_ids"].flatten(0, 1),
            attention_mask=inputs["attention_mask"].flatten(0, 1),
        )
        return {
            "logits": output.logits.float(),
            "boxes": output.pred_boxes.float(),
            "size": inputs["size"],
        }

    def postprocess(
        self, output: dict[str, Tensor], labels: tuple[str, ...], threshold: float
    ) -> list[dict[str, Any]]:
        """Return the objects of each label, with their scores and boxes in pixels."""
        found = []
        for number, label in enumerate(labels):
            of_label = ModelOutput(
                logits=output["logits"][..., number : number + 1], pred_boxes=output["boxes"]
            )
            [objects] = self.image_processor.post_process_object_detection(
                of_label, threshold=threshold, target_sizes=output["size"]
            )
            for score, corners in zip(objects["scores"], objects["boxes"], strict=True):
                box = dict(zip(_CORNERS, corners.int().tolist(), strict=True))
                found.append({"label": label, "score": score.item(), "box": box})
        return found


class Upscaler(OwnPipeline):
    """Makes a picture of more pixels (Swin2SR)."""

    def _sanitize_parameters(self) -> Parameters:
        return {}, {}, {}

    def preprocess(self, given: Any) -> dict[str, Tensor]:
        inputs = self.image_processor(given, return_tensors="pt")
        return {
            "pixel_values": inputs["pixel_values"].to(self.model.dtype),
            "size": torch.tensor([[given.height, given.width]]),
        }

    def compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        output = self.model(inputs["pixel_values"])
        return {"pixels": output.reconstruction.float(), "size": inputs["size"]}

    def postprocess(self, output: dict[str, Tensor]) -> Image.Image:
        height, width = (output["size"][0] * self.model.config.upscale).tolist()
        # The processor adds pixels at the right and at the bottom.
        pixels = output["pixels"][0, :, :height, :width].clamp(0, 1)
        levels = (pixels * 255).round().to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).numpy())


def _num_positions(config: Any) -> int:
    """Return the number of positions of a network's texts."""
    most = _MOST_TOKENS
    # A network that also sees, or has two networks in it, tells that of texts in a part of its own.
    for name in ("text_config", "decoder"):
        most = min(most, getattr(getattr(config, name, None), _POSITIONS, None) or most)
    # T5 and its like have none: their limit is that of their training.
    return min(most, getattr(config, _POSITIONS, None) or most)


def _window_of(tokenizer: Any, config: Any) -> int:
    """Return the most tokens of a text. `config` is that of the network."""
    most: int = tokenizer.model_max_length
    return min(most, _num_positions(config))


def length_options(model: Any, max_tokens: int | None, num_given: int = 1) -> dict[str, int]:
    """Return the options of `generate` that bound a text behind `num_given` tokens."""
    room = _num_positions(model.config) - num_given
    if max_tokens is not None:
        return {"max_new_tokens": min(max_tokens, room)}
    own = model.generation_config
    if own.max_new_tokens is not None or (own.max_length or 0) > _LIBRARY_MAX_LENGTH:
        return {}
    return {"max_new_tokens": min(_MAX_TOKENS, room)}


class SpanFinder(OwnPipeline):
    """Finds the answer to a question in a text, which is read in overlapping windows.

    The score of an answer is the product of the probabilities of its first and its last token,
    each by a softmax over the tokens of the text in its window.
    """

    is_chunked = True

    def _sanitize_parameters(self, top_k: int = 1, max_length: int = 15) -> Parameters:
        return {}, {}, {"top_k": top_k, "max_length": max_length}

    def preprocess(self, given: dict[str, str]) -> Iterator[dict[str, Any]]:
        window = _window_of(self.tokenizer, self.model.config)
        encoded = self.tokenizer(
            given["question"],
            given["context"],
            truncation="only_second",
            max_length=window,
            stride=window // 4,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        num_windows = len(encoded["input_ids"])
        for index in range(num_windows):
            # A token of the text is one of the second sequence.
            is_text = [number == 1 for number in encoded.sequence_ids(index)]
            chunk: dict[str, Any] = {"is_last": index + 1 == num_windows}
            for name in self.tokenizer.model_input_names:
                chunk[name] = torch.tensor([encoded[name][index]])
            chunk["is_text"] = torch.tensor([is_text])
            chunk["places"] = torch.tensor([encoded["offset_mapping"][index]])
            yield chunk

    def compute(self, inputs: dict[str, Any]) -> dict[str, Any]:
        read = {name: inputs[name] for name in self.tokenizer.model_input_names}
        output = self.model(**read)
        is_text = inputs["is_text"].bool()
        first = output.start_logits.float().masked_fill(~is_text, -torch.inf).softmax(-1)
        last = output.end_logits.float().masked_fill(~is_text, -torch.inf).softmax(-1)
        return {
            "is_last": inputs["is_last"],
            "first": first,
            "last": last,
            "places": inputs["places"],
        }

    def postprocess(
        self, output: list[dict[str, Any]], top_k: int, max_length: int
    ) -> list[tuple[float, int, int]]:
        """Return the score of the `top_k` best spans, and where each begins and ends."""
        best: dict[tuple[int, int], float] = {}
        for window in output:
            first, last, places = window["first"][0], window["last"][0], window["places"][0]
            scores = torch.outer(first, last).triu().tril(max_length - 1)
            values, spans = scores.flatten().topk(min(top_k, scores.numel()))
            for value, span in zip(values.tolist(), spans.tolist(), strict=True):
                if value == 0:
                    # No span of the text: there are fewer than were asked for.
                    continue
                start_token, end_token = divmod(span, len(first))
                place = (int(places[start_token, 0]), int(places[end_token, 1]))
                # Windows overlap: a span may be found twice.
                best[place] = max(value, best.get(place, 0.0))
        found = [(score, start, end) for (start, end), score in best.items()]
        found.sort(key=lambda answer: -answer[0])
        return found[:top_k]
