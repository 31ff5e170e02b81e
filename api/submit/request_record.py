"""The record of a request, which the front that takes it leaves in Redis.

By it any front can answer for the request.
"""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from api.stream.timings import Timings
from shared.errors import JobNotFound
from shared.queue.experiment_log import Assignment
from shared.queue.requests import Request

OnDisconnect = Literal["cancel", "continue", "grace"]
"""The fate of work whose caller leaves: it ends, goes on, or ends unless it is soon followed."""


class RequestRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The record of a request.

    `endpoint` names the endpoint that it came to and that renders its answer. `created` is in
    seconds since 1970. Each job has `n` choices. Where the server's cap allows them fewer tokens
    than the caller asked for, it is `capped_at`. `notes` are the endpoint's own. `experiment` is the one of
    which the model is an arm, "" for none.
    """

    endpoint: str = msgspec.field(name="kind")
    model: str
    created: int
    n: int = 1
    capped_at: int | None = None
    on_disconnect: OnDisconnect = "cancel"
    notes: dict[str, Any] = {}
    experiment: str = ""


@dataclass(frozen=True)
class SubmittedWork:
    """A request that is in the fleet, and its record.

    `timings` are set to render the answer of a timed endpoint, unless Redis does not tell them.
    """

    request: Request
    record: RequestRecord
    timings: Timings | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def assignment(self) -> Assignment | None:
        """The experiment that the request is of, and its arm; None for none."""
        if not self.record.experiment:
            return None
        return Assignment(self.record.experiment, self.record.model)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RequestRecord)


def encode_record(record: RequestRecord) -> bytes:
    return _encoder.encode(record)


def work_of(request: Request) -> SubmittedWork:
    """Return a request with its record. Raise JobNotFound for a record of another version."""
    try:
        return SubmittedWork(request, _decoder.decode(request.record))
    except msgspec.DecodeError as error:
        raise JobNotFound("This job was created by another version of the server.") from error
