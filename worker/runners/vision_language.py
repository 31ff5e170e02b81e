"""Causal LMs that see pictures: a network turns a picture into the states of tokens in a prompt.

Such a token gets an id beyond the vocabulary, which no other picture has. So prompts with pictures
are scheduled, cached and continued as all others are. Only the embedding knows what such an id
stands for.
"""

import hashlib
import inspect
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

from shared.errors import InvalidRequest
from shared.messages import Chat, Generate, ImagePart, Task, TextPart, Tokenize, Turn
from shared.tasks.runner_options import VisionOptions
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.engine.task_runner import Files
from worker.media.images import MAX_IMAGE_BYTES, decode_image
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of, read_generation_defaults
from worker.models.reading import reading
from worker.models.weights import (
    NO_NETWORK,
    check_all_loaded,
    load_tokenizer,
    read_config,
    start_ids,
)
from worker.runners.accelerators import prepare
from worker.runners.causal import (
    NO_CONDITIONS,
    CausalLanguage,
    checked_net,
    eos_ids_of,
    longest_of,
)
from worker.runners.causal_check import check_against_own_forward, refuse_by_config
from worker.runners.causal_net import CausalNet
from worker.runners.paged import PagedRunner
from worker.text.chat import ChatTemplate
from worker.text.encoding import encode_generate, known_ids
from worker.text.foreign import blamed
from worker.text.vocabulary import Ids, Vocabulary

_KEPT_BYTES = 128 << 20
"""Pictures that no prompt needs now are kept for the next turn, up to this size in all."""
_MAX_PICTURES = 32
"""The most pictures of a dialogue: each is decoded and looked at before the first word."""
_PROCESSOR = (
    "preprocessor_config.json or processor_config.json may be missing or damaged: copy it again"
)
_OF_TEXTS = ("attention_mask", "token_type_ids", "mm_token_type_ids")
"""What processors return about texts, which pages need not."""
_TRIAL = Chat((Turn("user", (ImagePart("trial"), TextPart("hi"))),))
_TRIAL_IMAGES = {colour: Image.new("RGB", (64, 48), colour) for colour in ("teal", "orange")}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in a prompt: the states [n, hidden] of its tokens, whose ids begin at `first`."""

    first: int
    states: Tensor

    @property
    def end(self) -> int:
        return self.first + len(self.states)

    @property
    def ids(self) -> Ids:
        return tuple(range(self.first, self.end))


class Pictures:
    """The pictures of prompts, by their contents and by their ids, which are `first` and above.

    One lives as long as somebody holds it, and then as long as there is room. Ids are never used
    again.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._by_key: WeakValueDictionary[str, Picture] = WeakValueDictionary()
        self._by_first: WeakValueDictionary[int, Picture] = WeakValueDictionary()
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        # Prompts are read in several threads.
        self._lock = Lock()

    def find(self, key: str) -> Picture | None:
        with self._lock:
            picture = self._by_key.get(key)
            if picture is not None:
                self._keep(key, picture)
            return picture

    def add(self, key: str, states: Tensor) -> Picture:
        """Return the picture with this key, which another thread may have added."""
        with self._lock:
            picture = self._by_key.get(key)
            if picture is None:
                picture = Picture(self._next, states)
                self._next = picture.end
                self._by_key[key] = picture
                self._by_first[picture.first] = picture
            self._keep(key, picture)
            return picture

    def _keep(self, key: str, picture: Picture) -> None:
        self._kept[key] = picture
        self._kept.move_to_end(key)
        num_bytes = sum(one.states.nbytes for one in self._kept.values())
        while num_bytes > _KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            num_bytes -= oldest.states.nbytes

    def states(self, ids: list[int]) -> Tensor:
        """Return the states [n, hidden] of these ids, of pictures that are alive."""
        with self._lock:
            firsts = sorted(self._by_first.keys())
            parts: list[Tensor] = []
            start = 0
            while start < len(ids):
                picture = self._by_first[firsts[bisect_right(firsts, ids[start]) - 1]]
                end = start + 1
                while end < len(ids) and ids[end] == ids[end - 1] + 1 and ids[end] < picture.end:
                    end += 1
                offset = ids[start] - picture.first
                parts.append(picture.states[offset : offset + end - start])
                start = end
        return torch.cat(parts)


class VisionNet(CausalNet):
    """A causal LM some of whose ids stand for pictures, those from `vocab_size` on."""

    pictures: Pictures
    vocab_size: int

    @classmethod
    def of(cls, net: CausalNet, pictures: Pictures, vocab_size: int) -> "VisionNet":
        """Return a network that sees, and shares all else with `net`."""
        seeing = cls.__new__(cls)
        seeing.__dict__ = net.__dict__ | {"pictures": pictures, "vocab_size": vocab_size}
        return seeing

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        # While a graph is captured, rows decode, and what they read are words.
        if ids.is_cuda and torch.cuda.is_current_stream_capturing():
            return super().inputs(ids)
        is_picture = ids >= self.vocab_size
        if not is_picture.any():
            return super().inputs(ids)
        embedding: Any = self.model.get_input_embeddings()
        embeds: Tensor = embedding(ids.clamp(max=self.vocab_size - 1)).clone()
        states = self.pictures.states(ids[is_picture].tolist())
        embeds[is_picture] = states.to(embeds.device, embeds.dtype)
        return {"inputs_embeds": embeds[None]}


class Viewer:
    """Reads dialogues with pictures for a network: what it sees becomes states, once a picture.

    `network` is the whole network, and `processor` that of transformers, which knows how many
    tokens stand for a picture and what stands around them.
    """

    def __init__(
        self,
        network: Any,
        processor: Any,
        *,
        vocabulary: Vocabulary,
        template: ChatTemplate,
        pictures: Pictures,
    ) -> None:
        self._network = network
        self._processor = processor
        self._vocabulary = vocabulary
        self._template = template
        self._pictures = pictures
        self.token = int(network.config.image_token_id)
        """The id that the processor writes where a picture's tokens go."""

    def prompt(
        self, chat: Chat, images: Sequence[tuple[str, Image.Image]]
    ) -> tuple[Ids, tuple[Picture, ...]]:
        """Return the ids of a dialogue with these pictures, and the pictures that ids stand for.

        With each picture comes a key that stands for its contents. Raise InvalidRequest for what
        the template, the processor or the network cannot take.
        """
        words, _ = self.read(chat, [image for _, image in images])
        pictures = [self._seen(key, image) for key, image in images]

        places = words.count(self.token)
        seen = [token for picture in pictures for token in picture.ids]
        if places != len(seen):
            raise InvalidRequest(
                f"messages: the dialogue has {places} places for tokens of pictures, and its "
                f"pictures have {len(seen)}: its texts must not name such a place themselves.",
                field="messages",
            )
        following = iter(seen)
        ids = tuple(next(following) if token == self.token else token for token in words)
        return ids, tuple(pictures)

    def read(self, chat: Chat, images: Sequence[Image.Image]) -> tuple[Ids, dict[str, Any]]:
        """Return the ids of a dialogue with places for its pictures, and the processor's inputs."""
        text = self._template.write(chat)
        given: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
        if images:
            given["images"] = list(images)
        with blamed("messages", "the model's processor cannot read them"):
            inputs = dict(self._processor(**given, add_special_tokens=False))
        [row] = inputs.pop("input_ids").tolist()
        ids = self._vocabulary.known(tuple(row), "messages")
        # As transformers does: marks stand before a text unless the template has written them.
        start = self._vocabulary.start_marks
        if ids[: len(start)] != start:
            ids = (*start, *ids)
        return ids, {name: inputs[name] for name in inputs if name not in _OF_TEXTS}

    @torch.inference_mode()
    def _seen(self, key: str, image: Image.Image) -> Picture:
        """Return a picture as the network sees it."""
        picture = self._pictures.find(key)
        if picture is not None:
            return picture
        with blamed("messages", "this model cannot see a picture of them"):
            inputs = self._processor.image_processor(images=[image], return_tensors="pt")
        accepted = inspect.signature(self._network.get_image_features).parameters
        given = {name: value for name, value in inputs.items() if name in accepted}
        found = self._network.get_image_features(**self.placed(given), return_dict=True)
        states = found.pooler_output
        if not isinstance(states, Tensor):
            states = torch.cat([part.reshape(-1, part.shape[-1]) for part in states])
        return self._pictures.add(key, states.reshape(-1, states.shape[-1]))

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs on the network's device, and numbers in its dtype."""
        placed: dict[str, Any] = {}
        for name, value in inputs.items():
            placed[name] = value
            if isinstance(value, Tensor):
                dtype = self._network.dtype if value.is_floating_point() else value.dtype
                placed[name] = value.to(self._network.device, dtype)
        return placed


class VisionLanguageRunner(PagedRunner):
    """A `VisionNet` that is stepped, and the viewer that puts pictures into its prompts."""

    viewer: Viewer
    vocabulary: Vocabulary
    max_pixels: int

    def encode_with_files(self, task: Task, files: Files) -> Encoded:
        if not isinstance(task, Generate | Tokenize) or not isinstance(task.prompt, Chat):
            return self.encode(task)
        images = [self._image(name, files) for name in _images_of(task.prompt)]
        ids, pictures = self.viewer.prompt(task.prompt, images)
        size = self.vocabulary.size
        if isinstance(task, Tokenize):
            known = tuple(token if token < size else self.viewer.token for token in ids)
            return self.vocabulary.tokenized(known, task)
        if task.condition is not None:
            raise InvalidRequest(NO_CONDITIONS, field="condition")
        encoded = encode_generate(ids, task, self.spec.context_window, vocab_size=size)
        return replace(encoded, held=pictures)

    def _image(self, name: str, files: Files) -> tuple[str, Image.Image]:
        data = files.read(name, max_bytes=MAX_IMAGE_BYTES)
        image = decode_image(data, max_pixels=self.max_pixels, field="messages")
        return hashlib.sha256(data).hexdigest(), image


def _images_of(chat: Chat) -> list[str]:
    """Return the names of the pictures in a dialogue. Raise InvalidRequest for too many."""
    names = []
    for turn in chat.messages:
        for part in () if isinstance(turn.content, str) else turn.content:
            if isinstance(part, ImagePart):
                names.append(part.image)
    if len(names) > _MAX_PICTURES:
        problem = f"expected at most {_MAX_PICTURES} pictures, got {len(names)}"
        raise InvalidRequest(f"messages: {problem}.", field="messages")
    return names


class VisionLanguage(CausalLanguage):
    """Text of causal LMs in whose prompts some ids stand for pictures."""

    def __init__(self, vocabulary: Vocabulary, start: Ids, eos_ids: frozenset[int]) -> None:
        super().__init__(vocabulary, start, eos_ids)
        self._size = vocabulary.size

    def decode(self, token_ids: Sequence[int]) -> str:
        return super().decode([token for token in token_ids if token < self._size])


def load(options: RunnerOptions) -> VisionLanguageRunner:
    """Load the network, its tokenizer and its processor.

    Raise ModelFormatError for weights that do not match, and for a network whose answers about
    pictures would differ from its own.
    """
    device = torch.device(options.device)
    path = directory_of(Path(options.path))
    config = read_config(path)
    generation = read_generation_defaults(path)
    refuse_by_config(config)
    own = options.declared(VisionOptions)
    network: Any = nn.Module.to(_load_network(path, getattr(torch, options.dtype)), device)
    tokenizer = load_tokenizer(Path(options.tokenizer_path or path))
    with reading(path, _PROCESSOR):
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)

    text_config = config.get_text_config()
    longest = longest_of(text_config, options.context_window)
    template = ChatTemplate(tokenizer, own.chat_template, with_parts=True)
    vocabulary = Vocabulary(tokenizer, text_config.vocab_size, template)
    pictures = Pictures(vocabulary.size)
    viewer = Viewer(
        network,
        processor,
        vocabulary=vocabulary,
        template=template,
        pictures=pictures,
    )
    writer = _writer_of(network)
    count = network.num_parameters() / 1e6
    found = f"{type(network).__name__}: {count:.1f} M parameters"
    found += f", vocabulary {text_config.vocab_size}, {options.precision}"

    # First, because later the layers of the part that writes are not the network's own any more.
    try:
        expected = _own_logits(network, viewer)
        net = VisionNet.of(checked_net(writer, longest, device), pictures, vocabulary.size)
        prompts = [viewer.prompt(_TRIAL, [(name, image)]) for name, image in _TRIAL_IMAGES.items()]
        check_against_own_forward(net, expected, [list(ids) for ids, _ in prompts])
    except InvalidRequest as error:
        problem = f"{type(network).__name__} cannot be shown a picture: {error.message}"
        raise ModelFormatError(f"{problem} Serve another model.") from error

    prepare(writer, options)
    eos_ids = known_ids(eos_ids_of(writer, generation.eos_token_id, tokenizer), vocabulary.size)
    runner = VisionLanguageRunner(
        "vision-language",
        found,
        net=net,
        language=VisionLanguage(vocabulary, start_ids(tokenizer), eos_ids),
        window=longest,
        options=options,
    )
    runner.viewer = viewer
    runner.vocabulary = vocabulary
    runner.max_pixels = own.max_pixels
    return runner


def _load_network(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the network. Raise ModelFormatError, which names weights that do not match."""
    with reading(path, NO_NETWORK, kind="a network that sees pictures"):
        loading: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            attn_implementation="eager",
        )
    network, info = loading
    check_all_loaded(info, path)
    loaded: PreTrainedModel = network.requires_grad_(False).eval()
    return loaded


def _writer_of(network: Any) -> PreTrainedModel:
    """Return the part of a network that reads and writes as a causal LM, on the same weights.

    Raise ModelFormatError where there is no such part.
    """
    config = network.config.get_text_config()
    try:
        with torch.device("meta"):
            writer: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except ValueError as error:
        raise ModelFormatError(
            f"{type(network).__name__} cannot be served from pages: the part of it that writes, a "
            f"{config.model_type}, is no causal language model; serve another model."
        ) from error
    setattr(writer, writer.base_model_prefix, network.get_decoder())
    writer.set_output_embeddings(network.get_output_embeddings())
    generation = getattr(network, "generation_config", None)
    if generation is not None:
        writer.generation_config = generation
    prepared: PreTrainedModel = writer.requires_grad_(False).eval()
    return prepared


@torch.inference_mode()
def _own_logits(network: Any, viewer: Viewer) -> list[Tensor]:
    """Return the network's own logits [tokens, vocab] of a dialogue about each trial picture."""
    logits = []
    for image in _TRIAL_IMAGES.values():
        ids, inputs = viewer.read(_TRIAL, [image])
        row = torch.tensor([ids], device=network.device)
        out = network(input_ids=row, **viewer.placed(inputs), use_cache=False)
        logits.append(out.logits[0].float())
    return logits
