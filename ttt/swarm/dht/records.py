"""The metrics record of a peer: what it publishes about itself, signed, in the DHT. Independent of tensors and history.

    key     f"{run}_metrics"
    subkey  "[owner:ssh-rsa ...]": the key that signs the record; the peer's libp2p id is its digest
    value   `PeerRecord` as a msgpack map of numbers and short strings

hivemind signs and verifies (`RSASignatureValidator`), `validation.py` rejects invalid records before they are stored,
and `read_all` checks each record again, because an answer may come from a node that checks nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ttt.swarm.process.sanitize import MAX_NAME, clean_text

if TYPE_CHECKING:
    from hivemind.dht import DHT
    from hivemind.dht.crypto import RSASignatureValidator

MAX_STEP = 100_000_000
MAX_SAMPLES = 10**15
MAX_RECORD_BYTES = 4096
MAX_SEEN = 64
CLOCK_SLACK = 30.0
"""Seconds by which a record's time may be ahead of ours."""
OWNER = re.compile(rb"\[owner:(ssh-rsa [A-Za-z0-9+/=]{100,1500})\]")

Count = Annotated[int, Field(ge=0, le=MAX_SAMPLES)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Rate = Annotated[float, Field(ge=0, le=1e9)]
Tag = Annotated[str, Field(pattern=r"^[1-9A-HJ-NP-Za-km-z]{12}$")]


def metrics_key(run: str) -> str:
    return f"{run}_metrics"


def tag_of(peer_id: str) -> str:
    """Return the short name of a peer within a record: the last 12 characters of its id."""
    return peer_id[-12:]


class PeerRecord(BaseModel):
    """What one peer did since its last record ("interval") and since its process started ("total")."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    peer_id: str = Field(min_length=20, max_length=64, pattern=r"^[1-9A-HJ-NP-Za-km-z]+$")
    """libp2p id; must be the digest of the signing key."""
    name: str = Field(default="", max_length=MAX_NAME)
    """Display name that the peer chose. Neither unique nor safe: escape it with `safe_name` before showing it."""
    started: float = Field(ge=0, le=1e11)
    """Unix time at which the process started; totals restart when it changes."""
    time: float = Field(ge=0, le=1e11)
    """Unix time of this record."""
    interval: Seconds = 0.0
    """Seconds since the last record."""
    step: int = Field(ge=0, le=MAX_STEP)
    samples: Count = 0
    """Training samples computed in the interval."""
    samples_total: Count = 0
    samples_per_second: Rate = 0.0
    compute_seconds: Seconds = 0.0
    """Seconds of the interval in which the device computed."""
    compute_seconds_total: Seconds = 0.0
    loss: float | None = Field(default=None, ge=-1e6, le=1e6)
    """Mean loss of the interval; None without samples."""
    loss_count: Count = 0
    """Samples behind `loss`."""
    learning_rate: float | None = Field(default=None, ge=0, le=1e3)
    micro_batch: int = Field(default=0, ge=0, le=1 << 24)
    device: str = Field(default="", max_length=60)
    """As text, for example "NVIDIA A100 40 GB" or "CPU, 2 cores"."""
    group_size: int = Field(default=0, ge=0, le=4096)
    """Peers in the last round of averaging gradients, this one included; 0 before the first."""
    share_received: float | None = Field(default=None, ge=0, le=1)
    """Share of the averages that arrived in that round."""
    averaging_seconds: Seconds = 0.0
    """Duration of that round."""
    bytes_sent: Count = 0
    """Of tensors, total."""
    bytes_received: Count = 0
    client_mode: bool = False
    auxiliary: bool = False
    software: str = Field(default="", max_length=40)
    seen: dict[Tag, Annotated[float, Field(ge=0, le=1e15)]] = Field(default_factory=dict, max_length=MAX_SEEN)
    """`tag_of` a groupmate -> total of the weights (samples) of its parts in the averages that this peer reduced.
    Observations of others are the check on a peer's own claims."""

    @field_validator("name", "device", "software")
    @classmethod
    def _printable(cls, text: str) -> str:
        # hivemind finds the signature in a value by the marker "[signature:".
        if text != clean_text(text, len(text) or 1) or "[" in text:
            raise ValueError("must be one line of printable characters without [")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> PeerRecord:
        if self.samples > self.samples_total:
            raise ValueError("samples must not exceed samples_total")
        if (self.loss is None) != (self.loss_count == 0):
            raise ValueError("loss and loss_count go together")
        return self


def record_text(text: str, limit: int) -> str:
    """Return the text in a form that `name`, `device` and `software` accept."""
    return clean_text(text.replace("[", "("), limit)


@dataclass
class Reading:
    """The valid records of a run, as the DHT answered."""

    records: dict[str, PeerRecord] = field(default_factory=dict)
    """By peer id."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of records that were rejected."""
    answered: bool = True
    """False if the DHT did not answer in time."""


def publish(
    dht: DHT,
    run: str,
    record: PeerRecord,
    signer: RSASignatureValidator,
    *,
    lifetime: float = 60.0,
    timeout: float = 10.0,
) -> bool:
    """Store a record under the signer's key for `lifetime` seconds; return False if the DHT did not accept it in time.

    A record in the name of another peer is not sent, and False returned: every honest node would reject it, but
    hivemind reports a record as stored as soon as one node says so. The signer (`validation.StrictSignatures`) must be
    one of the validators of the DHT, which sign what they store.
    """
    from hivemind.utils import get_dht_time

    if record.peer_id != owner_of(signer.local_public_key):
        return False
    future = dht.store(
        metrics_key(run),
        subkey=signer.local_public_key,
        value=record.model_dump(),
        expiration_time=get_dht_time() + lifetime,
        return_future=True,
    )
    return result_in_time(future, timeout) is True


def read_all(dht: DHT, run: str, *, timeout: float = 10.0) -> Reading:
    """Return every valid record of a run. Never waits longer than `timeout` seconds."""
    from hivemind.utils import get_dht_time

    answer = result_in_time(dht.get(metrics_key(run), latest=True, return_future=True), timeout)
    if answer is LATE:
        return Reading(answered=False)
    entries = getattr(answer, "value", None)
    return parse_all(entries if isinstance(entries, Mapping) else {}, now=get_dht_time())


def parse_all(entries: Mapping[Any, Any], now: float) -> Reading:
    """Parse the entries of a DHT answer, subkey -> object with `.value`."""
    reading = Reading()
    for subkey, entry in entries.items():
        try:
            record = parse(subkey, getattr(entry, "value", None), now)
        except ValueError as error:
            reading.dropped[str(error)] += 1
        else:
            reading.records[record.peer_id] = record
    return reading


def parse(subkey: object, value: object, now: float) -> PeerRecord:
    """Parse one record. Raises ValueError with a short reason, which contains nothing that its author wrote."""
    owner = owner_of(subkey)
    try:
        record = PeerRecord.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"field {short_reason(error)}") from None
    if record.peer_id != owner:
        raise ValueError("signed by another peer")
    if record.time > now + CLOCK_SLACK or record.started > record.time + CLOCK_SLACK:
        raise ValueError("from the future: its clock is wrong")
    return record


def owner_of(subkey: object) -> str:
    """Return the libp2p id of the key that a subkey names. Raises ValueError if it names none."""
    from ttt.swarm.dht.identity import peer_id_of

    match = OWNER.fullmatch(subkey) if isinstance(subkey, bytes) else None
    if match is None:
        raise ValueError("not signed by a peer's key")
    try:
        return peer_id_of(match[1])
    except Exception:  # cryptography raises many types of errors for broken keys
        raise ValueError("signed by a broken key") from None


def short_reason(error: ValidationError) -> str:
    """Return the first error without the input, and without the names of unknown fields: a stranger chose both."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "extra_forbidden":
        return "that is unknown"
    return f"{first['loc'][0] if first['loc'] else '(all)'}: {first['type']}"


LATE = object()
"""Returned by `result_in_time` for a future without a result."""


def result_in_time(future: Any, timeout: float) -> Any:
    """Return the future's value, or `LATE` if it failed or is not done in time."""
    from concurrent.futures import CancelledError

    try:
        return future.result(timeout)
    except (CancelledError, Exception):
        future.cancel()
        return LATE
