"""The record of a request: what the front that takes it leaves in Redis, for any front to
answer."""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from api.stream.timings import Timings
from shared.errors import JobNotFound
from shared.queue.requests import Request

OnDisconnect = Literal["cancel", "continue", "grace"]
"""The fate of work whose caller has left: it ends, goes on, or ends unless somebody follows it
soon."""


class RequestRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`endpoint` names how it was asked and is answered, `created` is seconds since 1970. Each job
    has `n` choices; the server's cap made them `capped_at` tokens, where that is fewer than asked.
    `notes` are the endpoint's own."""

    endpoint: str = msgspec.field(name="kind")
    model: str
    created: int
    n: int = 1
    capped_at: int | None = None
    on_disconnect: OnDisconnect = "cancel"
    notes: dict[str, Any] = {}


@dataclass(frozen=True)
class SubmittedWork:
    """A request that is in the fleet, and its record; once it has ended, how long it took, if its
    endpoint is timed."""

    request: Request
    record: RequestRecord
    timings: Timings | None = None

    @property
    def id(self) -> str:
        return self.request.id


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RequestRecord)


def encode_record(record: RequestRecord) -> bytes:
    return _encoder.encode(record)


def work_of(request: Request) -> SubmittedWork:
    """Raises JobNotFound for a record that only another version can read."""
    try:
        return SubmittedWork(request, _decoder.decode(request.record))
    except msgspec.DecodeError as error:
        raise JobNotFound("This job was created by another version of the server.") from error
