"""The messages on the wire.

Their bytes are pinned, so that a rolling upgrade cannot break unnoticed, and new fields are
tolerated.
"""

import struct
from typing import get_args

import msgspec
import pytest

from shared.errors import FleetError, QueueFull, from_event
from shared.messages import (
    Augmentation,
    Cancelled,
    Chat,
    Classify,
    ContinuationScore,
    Detokenize,
    Detokenized,
    Done,
    Embed,
    Embedded,
    Event,
    Failed,
    Generate,
    Generated,
    ImagePart,
    Job,
    Label,
    Labelled,
    ModelInfo,
    OtherResult,
    OtherTask,
    Progress,
    Prompting,
    Read,
    Result,
    Sampling,
    Score,
    Scored,
    Solution,
    Solve,
    SoundPart,
    Started,
    Task,
    TextPart,
    Tokenize,
    Tokenized,
    TokenLogprob,
    Tokens,
    Turn,
    WorkerInfo,
    decode_event,
    decode_job,
    decode_model,
    decode_worker,
    encode,
    name_of,
)
from shared.tasks.echo_task import EchoTask
from shared.tasks.task_table import TASKS, cost_of, info_of, slots_of
from shared.tasks.vectors import pack, unpack
from shared.telemetry.tracing import Trace
from tests.fixtures.api.one_shot_answers import ONE_SHOTS

GOLDEN: list[tuple[Event, str]] = [
    (
        Started(1, "w", 5),
        "84a474797065a773746172746564a565706f636801a6776f726b6572a177b16e756d5f70726f6d70"
        "745f746f6b656e7305",
    ),
    (Tokens((7, 300), "ab"), "83a474797065a6746f6b656e73a36964739207cd012ca474657874a26162"),
    (
        Tokens((7,), "a", 2, (TokenLogprob(-0.5, "a", ((7, "a", -0.5),)),), "stop"),
        "86a474797065a6746f6b656e73a36964739107a474657874a161a663686f69636502a86c6f677072"
        "6f62739183a76c6f6770726f62cbbfe0000000000000a5746f6b656ea161a3746f70919307a161cb"
        "bfe0000000000000ad66696e6973685f726561736f6ea473746f70",
    ),
    (Progress(3, 7, "x"), "84a474797065a870726f6772657373a4646f6e6503a5746f74616c07a46e6f7465a178"),
    (
        Progress(3, 7, preview=b"x"),
        "84a474797065a870726f6772657373a4646f6e6503a5746f74616c07a770726576696577c40178",
    ),
    (
        Progress(3, 7, "x", num_left_out=2, num_settled=1),
        "86a474797065a870726f6772657373a4646f6e6503a5746f74616c07a46e6f7465a178ac6e756d5f"
        "6c6566745f6f757402ab6e756d5f736574746c656401",
    ),
    (Cancelled(), "81a474797065a963616e63656c6c6564"),
    (
        Done("stop", 5, 2),
        "84a474797065a4646f6e65ad66696e6973685f726561736f6ea473746f70b16e756d5f70726f6d70"
        "745f746f6b656e7305b56e756d5f636f6d706c6574696f6e5f746f6b656e7302",
    ),
    (
        Done("length", 3, 1, result=Generated(num_amended=1)),
        "85a474797065a4646f6e65ad66696e6973685f726561736f6ea66c656e677468b16e756d5f70726f"
        "6d70745f746f6b656e7303b56e756d5f636f6d706c6574696f6e5f746f6b656e7301a6726573756c"
        "7482a474797065a867656e6572617465ab6e756d5f616d656e64656401",
    ),
    (
        Done("solve", 4, 0, result=Solution(((1, 2), "#G"), 0.75, 8, True)),
        "85a474797065a4646f6e65ad66696e6973685f726561736f6ea5736f6c7665b16e756d5f70726f6d"
        "70745f746f6b656e7304b56e756d5f636f6d706c6574696f6e5f746f6b656e7300a6726573756c74"
        "85a474797065a5736f6c7665a46772696492920102a22347aa636f6e666964656e6365cb3fe80000"
        "00000000a5737465707308a969735f68616c746564c3",
    ),
    (
        Done("tokenize", 2, 0, result=Tokenized((1, 300), ("a", "b"))),
        "85a474797065a4646f6e65ad66696e6973685f726561736f6ea8746f6b656e697a65b16e756d5f70"
        "726f6d70745f746f6b656e7302b56e756d5f636f6d706c6574696f6e5f746f6b656e7300a6726573"
        "756c7483a474797065a8746f6b656e697a65a36964739201cd012ca5746578747392a161a162",
    ),
    (
        Done("detokenize", 1, 0, result=Detokenized("")),
        "85a474797065a4646f6e65ad66696e6973685f726561736f6eaa6465746f6b656e697a65b16e756d"
        "5f70726f6d70745f746f6b656e7301b56e756d5f636f6d706c6574696f6e5f746f6b656e7300a672"
        "6573756c7482a474797065aa6465746f6b656e697a65a474657874a0",
    ),
    (
        Done("embed", 3, 0, result=Embedded(pack([0.5, -2.0]))),
        "85a474797065a4646f6e65ad66696e6973685f726561736f6ea5656d626564b16e756d5f70726f6d"
        "70745f746f6b656e7303b56e756d5f636f6d706c6574696f6e5f746f6b656e7300a6726573756c74"
        "82a474797065a5656d626564a6766563746f72c4080000003f000000c0",
    ),
    (
        Done("classify", 3, 0, result=Labelled((Label("good", 0.75),))),
        "85a474797065a4646f6e65ad66696e6973685f726561736f6ea8636c617373696679b16e756d5f70"
        "726f6d70745f746f6b656e7303b56e756d5f636f6d706c6574696f6e5f746f6b656e7300a6726573"
        "756c7482a474797065a8636c617373696679a66c6162656c739182a46e616d65a4676f6f64a57363"
        "6f7265cb3fe8000000000000",
    ),
]


@pytest.mark.parametrize(("event", "expected"), GOLDEN)
def test_golden_bytes(event: Event, expected: str) -> None:
    """Style 4: a change here breaks fronts and workers of neighbouring versions."""
    assert encode(event).hex() == expected
    assert decode_event(bytes.fromhex(expected)) == event


JOBS = [
    Job(
        "00" + "a" * 32,
        "m",
        Generate("hi", Sampling(max_tokens=4, seed=2**62, temperature=0.5, stop=("x",))),
    ),
    Job(
        "00" + "b" * 32,
        "m",
        Generate((1, 2, 3), Sampling(max_tokens=4, seed=0), condition="synth,cot"),
    ),
    Job(
        "00" + "d" * 32,
        "m",
        Generate(
            "hi",
            Sampling(
                max_tokens=4,
                seed=0,
                temperature=0.5,
                top_p=0.9,
                top_k=3,
                stop=("x",),
                n=2,
                min_p=0.1,
                min_tokens=2,
                ignore_eos=True,
                stop_ids=(5,),
                logit_bias=((7, -1.5),),
            ),
        ),
    ),
    Job(
        "00" + "e" * 32,
        "m",
        Generate("hi", Sampling(4, 0, presence_penalty=1, frequency_penalty=-1, logprobs=0)),
    ),
    Job(
        "00" + "a" * 32,
        "m",
        Generate("hi", Sampling(4, seed=0), overflow="refuse", max_prompt_tokens=5),
    ),
    Job(
        "00" + "c" * 32,
        "m",
        Score("c", ("a", (4, 5)), method="aios_compat"),
        tenant="t",
        request_id="r",
    ),
    Job("00" + "d" * 32, "m", Solve("." * 81)),
    Job("00" + "e" * 32, "m", Solve(((0, 9), (3, 4)), "007bbfb7_t0", "q_halt", 3)),
    Job("00" + "f" * 32, "m", Solve(("# S", "G o"), identifier=7)),
    Job("00" + "0" * 32, "m", Score("", ("a",), rolling=True)),
    Job(
        "00" + "1" * 32,
        "m",
        Generate(Chat((Turn("system", "be"), Turn("assistant", "so"))), Sampling(4, seed=0)),
    ),
    Job(
        "00" + "1" * 32,
        "m",
        Generate(
            Chat((Turn("user", (ImagePart("file-1"), SoundPart("file-2"), TextPart("a"))),)),
            Sampling(4, seed=0),
        ),
    ),
    Job("00" + "2" * 32, "m", Tokenize(Chat(()), with_texts=True)),
    Job("00" + "3" * 32, "m", Tokenize((1, 2), add_special_tokens=False)),
    Job("00" + "4" * 32, "m", Detokenize((1, 2), skip_special_tokens=True)),
    Job("00" + "5" * 32, "m", Embed((1, 2), normalize=False, overflow="refuse")),
    Job("00" + "6" * 32, "m", Classify("a", 2, "refuse")),
    Job("00" + "7" * 32, "m", Read((1, 2), 3, "direct")),
    Job("00" + "8" * 32, "m", EchoTask("a", 3, 10)),
    *(Job("00" + "9" * 32, "m", task) for task in ONE_SHOTS),
]


@pytest.mark.parametrize("job", JOBS)
def test_jobs_round_trip(job: Job) -> None:
    assert decode_job(encode(job)) == job


def test_golden_bytes_of_a_puzzle() -> None:
    """A puzzle's rows of either kind are pinned, and a field with its default is left out."""
    job = Job("00", "m", Solve(((0, 9), "#G"), identifier=2, halt="max"))
    expected = (
        "83a26964a23030a56d6f64656ca16da47461736b84a474797065a5736f6c7665a670757a7a6c6592"
        "920009a22347aa6964656e74696669657202a468616c74a36d6178"
    )
    assert encode(job).hex() == expected


def test_golden_bytes_of_an_augmented_puzzle() -> None:
    job = Job("00", "m", Solve(((0, 9),), augmentation=Augmentation("007bbfb7", 3)))
    expected = (
        "83a26964a23030a56d6f64656ca16da47461736b83a474797065a5736f6c7665a670757a7a6c6591"
        "920009ac6175676d656e746174696f6e82a77461736b5f6964a83030376262666237a66e756d6265"
        "7203"
    )
    assert encode(job).hex() == expected
    assert decode_job(bytes.fromhex(expected)) == job


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            Generate(Chat((Turn("user", "hi"),)), Sampling(4, 0)),
            "83a474797065a867656e6572617465a670726f6d707481a86d657373616765739182a4726f6c65a4"
            "75736572a7636f6e74656e74a26869a873616d706c696e67de0002aa6d61785f746f6b656e7304a4"
            "7365656400",
        ),
        (Tokenize("hi"), "82a474797065a8746f6b656e697a65a670726f6d7074a26869"),
        (Detokenize((7,)), "82a474797065aa6465746f6b656e697a65a36964739107"),
        (
            Embed("hi", normalize=False),
            "83a474797065a5656d626564a474657874a26869a96e6f726d616c697a65c2",
        ),
        (Read("hi", 2), "83a474797065a472656164a670726f6d7074a26869a76e756d5f746f7002"),
        (Classify("hi", 2), "83a474797065a8636c617373696679a474657874a26869a5746f705f6b02"),
    ],
)
def test_golden_bytes_of_tasks(task: Task, expected: str) -> None:
    head_of_job = "83a26964a23030a56d6f64656ca16da47461736b"
    assert encode(Job("00", "m", task)).hex() == head_of_job + expected


def test_tasks_have_names_and_costs() -> None:
    """Every task has a name, and a cost in tokens that is about what it takes."""
    names = {name_of(job.task) for job in JOBS}
    assert names == set(TASKS)
    for job in JOBS:
        assert cost_of(job.task) > 0

    words = Chat((Turn("system", "x" * 40), Turn("user", "y" * 40)))
    # Four characters count as a token, and each text as one more.
    assert cost_of(Generate(words, Sampling(8, 0))) == 8 + 2 * 11
    seen = Chat((Turn("user", (ImagePart("file-1"), TextPart("x" * 40))),))
    assert cost_of(Generate(seen, Sampling(8, 0))) == 8 + 256 + 11
    heard = Chat((Turn("user", (SoundPart("file-1"),)),))
    assert cost_of(Generate(heard, Sampling(8, 0))) == 8 + 512
    assert cost_of(Embed("x" * 40)) == 11
    assert cost_of(Classify("x" * 40)) == 11
    assert cost_of(Tokenize("x" * 4000)) == 1
    assert cost_of(Detokenize((1,) * 4000)) == 1


def test_vectors_come_back() -> None:
    """A vector has four bytes for each number, and other lengths are refused."""
    assert pack([1.0, -2.5]) == struct.pack("<2f", 1.0, -2.5)
    assert unpack(pack([1.0, -2.5])) == [1.0, -2.5]
    with pytest.raises(ValueError, match="multiple"):
        unpack(b"abc")


def test_a_trace_is_optional_on_the_wire() -> None:
    """A front that does not trace writes the same job as before, without the field.

    A worker's Started carries the trace if there is one.
    """
    plain = Job("00", "m", Tokenize("hi"))
    traced = msgspec.structs.replace(plain, trace=Trace(f"00-{'a' * 32}-{'b' * 16}-01", "x=y"))
    assert decode_job(encode(traced)) == traced
    assert b"trace" not in encode(decode_job(encode(plain)))

    started = Started(1, "w", 5, trace=traced.trace)
    assert decode_event(encode(started)) == started
    assert len({plain, traced}) == 2


def test_unknown_fields_and_missing_optional_ones_are_fine() -> None:
    """A newer front may send more fields, an older one fewer."""
    wire = msgspec.msgpack.decode(encode(JOBS[0]))
    wire["colour"] = "green"
    wire["task"]["sampling"]["typical_p"] = 0.3
    assert decode_job(msgspec.msgpack.encode(wire)) == JOBS[0]

    del wire["task"]["sampling"]["temperature"]
    task = decode_job(msgspec.msgpack.encode(wire)).task
    assert isinstance(task, Generate)
    assert task.sampling.temperature == 1.0


def test_events_and_presence_round_trip() -> None:
    done = Done("score", 3, 0, result=Scored((ContinuationScore(-1.5, 2, True),)))
    assert decode_event(encode(done)) == done

    model = ModelInfo(
        "m",
        runner="echo",
        found="found",
        context_window=10,
        max_new_tokens=5,
        max_batch=2,
        prompting=Prompting("{problem}", top_k=3, temperature=0.0),
    )
    assert decode_model(encode(model)) == model

    default_model = ModelInfo(
        "m",
        runner="echo",
        found="found",
        context_window=10,
        max_new_tokens=5,
        max_batch=2,
        is_default=True,
    )
    worker = WorkerInfo("w", "ready", (default_model,), in_flight=3)
    assert decode_worker(encode(worker)) == worker

    loading = WorkerInfo(
        "w", "ready", (), residences={"m": "loading"}, unloads={"m": 2**60}, obstacles={"n": "why"}
    )
    assert decode_worker(encode(loading)) == loading
    assert set(msgspec.msgpack.decode(encode(worker))) == {"id", "state", "models", "in_flight"}


def test_an_error_survives_the_wire_with_its_status() -> None:
    """DESIGN 6: every error has its code, and a code that is unknown here is an internal error."""
    for kind in FleetError.__subclasses__():
        error = from_event(kind("why", field="prompt").as_event())
        assert type(error) is kind
        assert error.message == "why"
        assert error.field == "prompt"
    assert QueueFull.status == 429
    assert type(from_event(Failed("from_the_future", "?"))) is FleetError


def test_every_task_has_a_row() -> None:
    specs = set()
    results = set()
    for name, info in TASKS.items():
        assert info.spec.__struct_config__.tag == name

        if not issubclass(info.spec, OtherTask):
            specs.add(info.spec)

        if info.result is None:
            continue

        # Tasks may share a form of result, which has the name of the first.
        assert TASKS[str(info.result.__struct_config__.tag)].result is info.result

        if not issubclass(info.result, OtherResult):
            results.add(info.result)

    assert specs == set(get_args(Task)) - {OtherTask}
    assert results == set(get_args(Result)) - {OtherResult}


def test_what_may_be_answered_again() -> None:
    greedy = Generate("a", Sampling(4, seed=1, temperature=0))
    other_seed = Generate("a", Sampling(4, seed=2, temperature=0))
    sampled = Generate("a", Sampling(4, seed=3, temperature=1))
    assert info_of(greedy).repeated(greedy) == info_of(other_seed).repeated(other_seed)
    assert info_of(sampled).repeated(sampled) is None
    assert info_of(Embed("a")).repeated(Embed("a")) == Embed("a")

    assert slots_of(Generate("a", Sampling(4, 0, n=3))) == 3
    assert slots_of(Embed("a")) == 1
