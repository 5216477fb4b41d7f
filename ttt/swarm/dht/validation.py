"""What the DHT of a run accepts: signed, small, well-formed records of peers that may speak. Knows no tensors.

hivemind's SchemaValidators are OR-ed, so that they cannot tighten a key that it already has a schema for; validators
of other classes are AND-ed, and ours is one. It keeps no state: two nodes that disagreed on a record would refuse each
other's whole answers. What needs a view of the swarm (an epoch far ahead of all others) is judged by the readers, in
`progress.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from hivemind.dht.crypto import RSASignatureValidator
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils import MSGPackSerializer, get_dht_time
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttt.swarm.dht.access import AccessPolicy, Action, AllowAll
from ttt.swarm.dht.records import CLOCK_SLACK, MAX_RECORD_BYTES, MAX_SAMPLES, MAX_STEP, metrics_key, owner_of, parse

MAX_OTHER_BYTES = 1 << 16
MAX_LIFETIME = 3600.0
"""Seconds ahead that a record of a run may expire: nobody haunts a swarm for longer."""
AVERAGERS = ("grad_averager", "state_averager")
PRIORITY_RANGE = (-1.0, float(MAX_STEP))


class ProgressRecord(BaseModel):
    """`{run}_progress`: hivemind's LocalTrainingProgress with the ranges that it lacks."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    peer_id: bytes = Field(min_length=16, max_length=64)
    epoch: int = Field(ge=0, le=MAX_STEP)
    samples_accumulated: int = Field(ge=0, le=MAX_SAMPLES)
    samples_per_second: Annotated[float, Field(ge=0, le=1e9)]
    time: float = Field(ge=0, le=1e11)
    client_mode: bool


class StrictSignatures(RSASignatureValidator):
    """Signatures as hivemind's, but a record that cannot be checked is refused instead of raising an error.

    An error in a validator makes hivemind drop the whole answer in which the record came.
    """

    def validate(self, record: DHTRecord) -> bool:
        try:
            return super().validate(record)
        except Exception:
            return False


class RecordRules(RecordValidatorBase):
    """Rules for the keys of one run; under others, what is signed, and peers that look for a group. Goes with
    `StrictSignatures`."""

    def __init__(self, run: str, access: AccessPolicy | None = None, *, max_samples: int = MAX_SAMPLES) -> None:
        """max_samples: no peer may claim more samples for one epoch (the run's global batch)."""
        self._access = access or AllowAll()
        self._max_samples = max_samples
        self._rules: dict[bytes, Callable[[DHTRecord, Any, Any], bool]] = {
            _key_id(metrics_key(run)): self._metrics,
            _key_id(f"{run}_progress"): self._progress,
        }
        for averager in AVERAGERS:
            self._rules[_key_id(f"{run}_{averager}.all_averagers")] = self._donor

    def validate(self, record: DHTRecord) -> bool:
        try:
            if record.subkey in DHTProtocol.RESERVED_SUBKEYS:
                return False  # a plain value would hide everybody's
            subkey = MSGPackSerializer.loads(record.subkey)
            rule = self._rules.get(record.key, self._group)
            if rule == self._group and not _is_peer_id(subkey):  # such as the coordinator's announcement: signed
                return bool(owner_of(subkey)) and len(record.value) <= MAX_OTHER_BYTES
            if len(record.value) > MAX_RECORD_BYTES or not _in_time(record.expiration_time):
                return False
            return rule(record, subkey, MSGPackSerializer.loads(record.value))
        except Exception:  # msgpack has a dozen errors for broken bytes
            return False

    def _metrics(self, record: DHTRecord, subkey: Any, value: Any) -> bool:
        owner = owner_of(subkey)
        return self._may_speak(owner) and (value is None or parse(subkey, value, get_dht_time()).peer_id == owner)

    def _progress(self, record: DHTRecord, subkey: Any, value: Any) -> bool:
        owner = owner_of(subkey)
        return self._may_speak(owner) and (value is None or self._fits(owner, value))

    def _fits(self, owner: str, value: Any) -> bool:
        try:
            progress = ProgressRecord.model_validate(value)
        except ValidationError:
            return False
        return (
            _base58(progress.peer_id) == owner
            and progress.samples_accumulated <= self._max_samples
            and progress.time <= get_dht_time() + CLOCK_SLACK
        )

    def _donor(self, record: DHTRecord, subkey: Any, value: Any) -> bool:
        return self._is_peer(subkey) and (value is None or _is_priority(value))

    def _group(self, record: DHTRecord, subkey: Any, value: Any) -> bool:
        """A peer looks for a group, or no longer. The epoch is part of the key, of which we see the digest alone, so
        that this holds for every key without a rule of its own; another run's donors may use the network too."""
        return self._is_peer(subkey) and (value is None or isinstance(value, bool) or _is_priority(value))

    def _is_peer(self, subkey: Any) -> bool:
        """This record is unsigned: anybody may write it in anybody's name, but not in a banned peer's."""
        return _is_peer_id(subkey) and self._may_speak(_base58(subkey))

    def _may_speak(self, peer_id: str) -> bool:
        return self._access.allows(peer_id, Action.DHT_RECORD).allowed


def drop_only_bad_entries() -> None:
    """Make hivemind drop a bad entry of a dictionary, where it would drop the dictionary. Before a DHT is started."""
    DHTProtocol._validate_dictionary = _without_bad_entries


def _without_bad_entries(self: DHTProtocol, key: bytes, dictionary: Any) -> bool:
    """In place; in hivemind one forged entry hides all others that came with it."""
    with dictionary.freeze():
        for subkey, (value, expiration) in list(dictionary.items()):
            if not self._validate_record(key, self.serializer.dumps(subkey), value, expiration):
                del dictionary[subkey]
    return True


def _is_priority(value: Any) -> bool:
    low, high = PRIORITY_RANGE
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_peer_id(subkey: Any) -> bool:
    return isinstance(subkey, bytes) and len(subkey) == 34


def _key_id(key: str) -> bytes:
    return DHTID.generate(source=key).to_bytes()


def _in_time(expiration: float) -> bool:
    return math.isfinite(expiration) and expiration <= get_dht_time() + MAX_LIFETIME


def _base58(peer_id: bytes) -> str:
    import base58

    return base58.b58encode(peer_id).decode()
