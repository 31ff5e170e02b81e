"""Causal LMs that see pictures or hear sounds: a part of the network makes states of them.

A picture or a sound takes the places of some tokens in a prompt. Each of these gets an id beyond
the vocabulary, which no other picture or sound has. So such prompts are scheduled, cached and
continued as all others are. Only the embedding knows what such an id stands for.
"""

import hashlib
import inspect
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoProcessor, PretrainedConfig, PreTrainedModel

from shared.errors import InvalidRequest
from shared.messages import Chat, Generate, ImagePart, SoundPart, Task, TextPart, Tokenize, Turn
from shared.tasks.runner_options import MultimodalOptions
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.engine.task_runner import Files
from worker.media.images import MAX_IMAGE_BYTES, decode_image
from worker.media.sound import MAX_SOUND_BYTES, decode_sound
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of, read_generation_defaults
from worker.models.reading import reading
from worker.models.weight_size import weight_size
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
"""States that no prompt needs now are kept for the next turn, up to this size in all."""
_MOST_PARTS = 32
"""The most pictures and sounds of a dialogue: each is computed before the first word."""
_PROCESSOR = (
    "preprocessor_config.json or processor_config.json may be missing or damaged: copy it again"
)
_OF_TEXTS = ("attention_mask", "token_type_ids", "mm_token_type_ids")
"""Outputs of processors that describe texts, which the paged engine does without."""
_TRIAL_S = 0.5

Kind = Literal["image", "audio"]
_ARGUMENTS: dict[Kind, str] = {"image": "images", "audio": "audio"}
"""The processors' names for what is seen and heard."""


@dataclass(frozen=True)
class Part:
    """A picture or a sound of a dialogue, decoded. `key` stands for its contents."""

    kind: Kind
    key: str
    value: Any


@dataclass(frozen=True, eq=False)
class Medium:
    """A part as the network encodes it: the states [n, hidden] of ids that begin at `first`."""

    first: int
    states: Tensor

    @property
    def end(self) -> int:
        return self.first + len(self.states)

    @property
    def ids(self) -> Ids:
        return tuple(range(self.first, self.end))


class Media:
    """The media of prompts, by the keys of their parts and by their ids, which are `first` and above.

    One lives as long as somebody holds it, and then as long as there is room. Ids are never used
    again.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._by_key: WeakValueDictionary[str, Medium] = WeakValueDictionary()
        self._by_first: WeakValueDictionary[int, Medium] = WeakValueDictionary()
        self._kept: OrderedDict[str, Medium] = OrderedDict()
        # Prompts are read in several threads.
        self._lock = Lock()

    def find(self, key: str) -> Medium | None:
        with self._lock:
            medium = self._by_key.get(key)
            if medium is not None:
                self._keep(key, medium)
            return medium

    def add(self, key: str, states: Tensor) -> Medium:
        """Return the medium of this key, which another thread may have added."""
        with self._lock:
            medium = self._by_key.get(key)
            if medium is None:
                medium = Medium(self._next, states)
                self._next = medium.end
                self._by_key[key] = medium
                self._by_first[medium.first] = medium
            self._keep(key, medium)
            return medium

    def _keep(self, key: str, medium: Medium) -> None:
        self._kept[key] = medium
        self._kept.move_to_end(key)
        num_bytes = sum(one.states.nbytes for one in self._kept.values())
        while num_bytes > _KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            num_bytes -= oldest.states.nbytes

    def states(self, ids: Sequence[int]) -> Tensor:
        """Return the states [n, hidden] of these ids, of media that are alive."""
        with self._lock:
            firsts = sorted(self._by_first.keys())
            parts: list[Tensor] = []
            start = 0
            while start < len(ids):
                medium = self._by_first[firsts[bisect_right(firsts, ids[start]) - 1]]
                end = start + 1
                while end < len(ids) and ids[end] == ids[end - 1] + 1 and ids[end] < medium.end:
                    end += 1
                offset = ids[start] - medium.first
                parts.append(medium.states[offset : offset + end - start])
                start = end
        return torch.cat(parts)


class MultimodalNet(CausalNet):
    """A causal LM whose ids from `vocab_size` on stand for media."""

    media: Media
    vocab_size: int

    @classmethod
    def of(cls, net: CausalNet, media: Media, vocab_size: int) -> "MultimodalNet":
        """Return a network that knows media, and shares all else with `net`."""
        knowing = cls.__new__(cls)
        knowing.__dict__ = net.__dict__ | {"media": media, "vocab_size": vocab_size}
        return knowing

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        # While a graph is captured, rows decode, and what they read are words.
        if ids.is_cuda and torch.cuda.is_current_stream_capturing():
            return super().inputs(ids)
        is_medium = ids >= self.vocab_size
        if not is_medium.any():
            return super().inputs(ids)
        embedding: Any = self.model.get_input_embeddings()
        embeds: Tensor = embedding(ids.clamp(max=self.vocab_size - 1)).clone()
        states = self.media.states(ids[is_medium].tolist())
        embeds[is_medium] = states.to(embeds.device, embeds.dtype)
        return {"inputs_embeds": embeds[None]}


class Prompter:
    """Writes dialogues with pictures and sounds as ids, for a network that sees or hears.

    `network` is the whole network. `processor` is that of transformers, which knows how many tokens
    a part takes and what stands around them.
    """

    def __init__(
        self,
        network: Any,
        processor: Any,
        *,
        vocabulary: Vocabulary,
        template: ChatTemplate,
        media: Media,
    ) -> None:
        self._network = network
        self._processor = processor
        self._vocabulary = vocabulary
        self._template = template
        self._media = media
        self.tokens: dict[Kind, int] = {}
        """The id that the processor writes where the tokens of a part go, by its kind."""
        for kind in _ARGUMENTS:
            token = getattr(network.config, f"{kind}_token_id", None)
            if token is not None and hasattr(network, f"get_{kind}_features"):
                self.tokens[kind] = int(token)

    @property
    def rate(self) -> int:
        """The samples a second of sounds."""
        return int(self._processor.feature_extractor.sampling_rate)

    def prompt(self, chat: Chat, parts: Sequence[Part]) -> tuple[Ids, tuple[Medium, ...]]:
        """Return the ids of a dialogue with these parts, and the media that ids stand for.

        Raise InvalidRequest for what the template, the processor or the network cannot take.
        """
        words, _ = self.read(chat, parts)
        media: list[Medium] = []
        ids_of: dict[int, list[int]] = {token: [] for token in self.tokens.values()}
        for part in parts:
            medium = self._computed(part)
            media.append(medium)
            ids_of[self.tokens[part.kind]] += medium.ids

        for token, ids in ids_of.items():
            places = words.count(token)
            if places != len(ids):
                raise InvalidRequest(
                    f"messages: the dialogue has {places} places for tokens of pictures or "
                    f"sounds, which have {len(ids)}: its texts must not name such a place.",
                    field="messages",
                )
        following = {token: iter(ids) for token, ids in ids_of.items()}
        prompt = tuple(next(following[word]) if word in following else word for word in words)
        return prompt, tuple(media)

    def read(self, chat: Chat, parts: Sequence[Part]) -> tuple[Ids, dict[str, Any]]:
        """Return the ids of a dialogue with places for its parts, and the processor's inputs."""
        text = self._template.write(chat)
        with blamed("messages", "the model's processor cannot read them"):
            inputs = self._processed(text, parts)
        [row] = inputs.pop("input_ids").tolist()
        ids = self._vocabulary.known(tuple(row), "messages")
        # As transformers does: marks stand before a text unless the template has written them.
        start = self._vocabulary.start_marks
        if ids[: len(start)] != start:
            ids = (*start, *ids)
        return ids, inputs

    def _processed(self, text: str, parts: Sequence[Part]) -> dict[str, Any]:
        given: dict[str, list[Any]] = {}
        for part in parts:
            given.setdefault(_ARGUMENTS[part.kind], []).append(part.value)
        inputs = self._processor(
            text=[text], return_tensors="pt", add_special_tokens=False, **given
        )
        return {name: inputs[name] for name in inputs if name not in _OF_TEXTS}

    @torch.inference_mode()
    def _computed(self, part: Part) -> Medium:
        """Return what the network makes of a part."""
        medium = self._media.find(part.key)
        if medium is not None:
            return medium
        place: str = getattr(self._processor, f"{part.kind}_token")
        with blamed("messages", "the model's processor cannot read a part of them"):
            inputs = self._processed(place, [part])
        compute = getattr(self._network, f"get_{part.kind}_features")
        accepted = inspect.signature(compute).parameters
        given = {name: value for name, value in inputs.items() if name in accepted}
        states = compute(**self.placed(given), return_dict=True).pooler_output
        if not isinstance(states, Tensor):
            states = torch.cat([one.reshape(-1, one.shape[-1]) for one in states])
        return self._media.add(part.key, states.reshape(-1, states.shape[-1]))

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs on the network's device, and numbers in its dtype."""
        placed: dict[str, Any] = {}
        for name, value in inputs.items():
            placed[name] = value
            if isinstance(value, Tensor):
                dtype = self._network.dtype if value.is_floating_point() else value.dtype
                placed[name] = value.to(self._network.device, dtype)
        return placed


class MultimodalRunner(PagedRunner):
    """A `MultimodalNet` that is stepped, and the prompter of its dialogues."""

    prompter: Prompter
    vocabulary: Vocabulary
    own: MultimodalOptions

    def encode_with_files(self, task: Task, files: Files) -> Encoded:
        if not isinstance(task, Generate | Tokenize) or not isinstance(task.prompt, Chat):
            return self.encode(task)
        parts = [self._part(part, files) for part in _parts_of(task.prompt)]
        ids, media = self.prompter.prompt(task.prompt, parts)
        size = self.vocabulary.size
        if isinstance(task, Tokenize):
            # What stands for a part is told as the processor writes it.
            words, _ = self.prompter.read(task.prompt, parts)
            return self.vocabulary.tokenized(words, task)
        if task.condition is not None:
            raise InvalidRequest(NO_CONDITIONS, field="condition")
        encoded = encode_generate(ids, task, self.spec.context_window, vocab_size=size)
        return replace(encoded, held=media)

    def _part(self, part: ImagePart | SoundPart, files: Files) -> Part:
        """Return a part of a dialogue. Raise InvalidRequest for one that this model cannot take."""
        kinds = self.prompter.tokens
        if isinstance(part, ImagePart):
            if "image" not in kinds:
                raise InvalidRequest("messages: this model sees no pictures.", field="messages")
            data = files.read(part.image, max_bytes=MAX_IMAGE_BYTES)
            value: Any = decode_image(data, max_pixels=self.own.max_pixels, field="messages")
            return Part("image", _key("image", data), value)
        if "audio" not in kinds:
            raise InvalidRequest("messages: this model hears no sounds.", field="messages")
        data = files.read(part.audio, max_bytes=MAX_SOUND_BYTES)
        value = decode_sound(
            data, rate=self.prompter.rate, max_seconds=self.own.max_seconds, field="messages"
        )
        return Part("audio", _key("audio", data), value)


def _key(kind: Kind, data: bytes) -> str:
    return f"{kind} {hashlib.sha256(data).hexdigest()}"


def _parts_of(chat: Chat) -> list[ImagePart | SoundPart]:
    """Return the pictures and sounds of a dialogue. Raise InvalidRequest for too many."""
    parts: list[ImagePart | SoundPart] = []
    for turn in chat.messages:
        for part in () if isinstance(turn.content, str) else turn.content:
            if not isinstance(part, TextPart):
                parts.append(part)
    if len(parts) > _MOST_PARTS:
        problem = f"expected at most {_MOST_PARTS} pictures and sounds, got {len(parts)}"
        raise InvalidRequest(f"messages: {problem}.", field="messages")
    return parts


class MultimodalLanguage(CausalLanguage):
    """Text of causal LMs in whose prompts some ids stand for media."""

    def __init__(self, vocabulary: Vocabulary, start: Ids, eos_ids: frozenset[int]) -> None:
        super().__init__(vocabulary, start, eos_ids)
        self._size = vocabulary.size

    def decode(self, token_ids: Sequence[int]) -> str:
        return super().decode([token for token in token_ids if token < self._size])


def load(options: RunnerOptions) -> MultimodalRunner:
    """Load the network, its tokenizer and its processor.

    Raise ModelFormatError for weights that do not match, and for a network whose answers about
    pictures or sounds would differ from its own.
    """
    device = torch.device(options.device)
    path = directory_of(Path(options.path))
    config = read_config(path)
    generation = read_generation_defaults(path)
    refuse_by_config(config)
    own = options.declared(MultimodalOptions)
    network: Any = nn.Module.to(_load_network(path, config, getattr(torch, options.dtype)), device)
    tokenizer = load_tokenizer(Path(options.tokenizer_path or path))
    with reading(path, _PROCESSOR):
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)

    text_config = config.get_text_config()
    longest = longest_of(text_config, options.context_window)
    template = ChatTemplate(tokenizer, own.chat_template, with_parts=True)
    vocabulary = Vocabulary(tokenizer, text_config.vocab_size, template)
    media = Media(vocabulary.size)
    prompter = Prompter(network, processor, vocabulary=vocabulary, template=template, media=media)
    writer = _writer_of(network)
    count = network.num_parameters() / 1e6
    found = f"{type(network).__name__}: {count:.1f} M parameters"
    found += f", vocabulary {text_config.vocab_size}, {options.precision}"

    try:
        trials = _trials(prompter)
        # First, because later the layers of the part that writes are not the network's own.
        expected = [_own_logits(network, prompter, chat, part) for chat, part in trials]
        net = MultimodalNet.of(checked_net(writer, longest, device), media, vocabulary.size)
        for number in range(0, len(trials), 2):
            pair = slice(number, number + 2)
            prompts = [prompter.prompt(chat, [part]) for chat, part in trials[pair]]
            check_against_own_forward(net, expected[pair], [list(ids) for ids, _ in prompts])
    except InvalidRequest as error:
        problem = f"{type(network).__name__} cannot be asked about a part: {error.message}"
        raise ModelFormatError(f"{problem} Serve another model.") from error

    prepare(writer, options)
    eos_ids = known_ids(eos_ids_of(writer, generation.eos_token_id, tokenizer), vocabulary.size)
    runner = MultimodalRunner(
        "multimodal",
        found,
        net=net,
        language=MultimodalLanguage(vocabulary, start_ids(tokenizer), eos_ids),
        window=longest,
        options=options,
        weights=weight_size(network),
    )
    runner.prompter = prompter
    runner.vocabulary = vocabulary
    runner.own = own
    return runner


def _load_network(path: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load the network. Raise ModelFormatError, which names weights that do not match."""
    [architecture, *_] = config.architectures or [""]
    kind: Any = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise ModelFormatError(
            f"{path}: config.json names the architecture {architecture!r}, which this version of "
            "transformers does not have."
        )
    with reading(path, NO_NETWORK, kind="a network that sees or hears"):
        loading: Any = kind.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
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
    decoder = network.get_decoder()
    if hasattr(decoder, writer.base_model_prefix) and decoder.get_output_embeddings() is not None:
        # Some networks hold a whole causal LM.
        writer = decoder
    else:
        setattr(writer, writer.base_model_prefix, decoder)
        writer.set_output_embeddings(network.get_output_embeddings())
    generation = getattr(network, "generation_config", None)
    if generation is not None:
        writer.generation_config = generation
    prepared: PreTrainedModel = writer.requires_grad_(False).eval()
    return prepared


def _trials(prompter: Prompter) -> list[tuple[Chat, Part]]:
    """Return two short dialogues for each kind of parts that the network takes."""
    trials: list[tuple[Chat, Part]] = []
    for kind in prompter.tokens:
        for number in range(2):
            key = f"trial {kind} {number}"
            if kind == "image":
                value: Any = Image.new("RGB", (64, 48), ("teal", "orange")[number])
                turn = Turn("user", (ImagePart(key), TextPart("hi")))
            else:
                times = np.arange(int(_TRIAL_S * prompter.rate)) / prompter.rate
                value = np.sin(2 * np.pi * 440 * (number + 1) * times).astype(np.float32)
                turn = Turn("user", (SoundPart(key), TextPart("hi")))
            trials.append((Chat((turn,)), Part(kind, key, value)))
    if not trials:
        raise InvalidRequest("It has no token for a picture or a sound.")
    return trials


@torch.inference_mode()
def _own_logits(network: Any, prompter: Prompter, chat: Chat, part: Part) -> Tensor:
    """Return the network's own logits [tokens, vocab] of a dialogue with a part."""
    ids, inputs = prompter.read(chat, [part])
    row = torch.tensor([ids], device=network.device)
    accepted = inspect.signature(network.forward).parameters
    given = {name: value for name, value in inputs.items() if name in accepted}
    out = network(input_ids=row, **prompter.placed(given), use_cache=False)
    logits: Tensor = out.logits[0].float()
    return logits
