"""Validation of DHT records: a node stores only small, well-formed records of peers that the access policy allows.

    key                              subkey                     value               signed  rule
    RUN_metrics                      [owner:ssh-rsa ...]        PeerRecord          yes     _metrics
    RUN_progress                     [owner:ssh-rsa ...]        ProgressRecord      yes     _progress
    RUN_{grad,state}_averager
      .all_averagers                 peer id (bytes)            step of the state   no      _donor
      -STEP.0b                       peer id (bytes)            looks for a group   no      _group
    any other                        [owner:ssh-rsa ...]        anything small      yes     (the announcement, for one)

hivemind combines SchemaValidators with OR, so one cannot tighten a key for which hivemind has a schema itself.
Validators of other classes are combined with AND; `RecordRules` is one. It is stateless: two nodes that disagreed about
a record would reject each other's whole answers. What requires a view of the swarm, such as an epoch far ahead of all
others, is judged by the readers of the records (`averaging/progress.py`).
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
"""Seconds ahead that a record of a run may expire, so that no peer can leave a record behind for longer."""
AVERAGERS = ("grad_averager", "state_averager")
PRIORITY_RANGE = (-1.0, float(MAX_STEP))


class ProgressRecord(BaseModel):
    """`{run}_progress`: hivemind's LocalTrainingProgress with the ranges that it lacks."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    peer_id: bytes = Field(min_length=16, max_length=64)
    epoch: int = Field(ge=0, le=MAX_STEP)
    """Optimizer steps of the swarm; the wire name is hivemind's."""
    samples_accumulated: int = Field(ge=0, le=MAX_SAMPLES)
    samples_per_second: Annotated[float, Field(ge=0, le=1e9)]
    time: float = Field(ge=0, le=1e11)
    client_mode: bool


class StrictSignatures(RSASignatureValidator):
    """hivemind's signatures, except that a record that cannot be checked is rejected instead of raising an error.

    An error in a validator makes hivemind drop the whole answer that contains the record.
    """

    def validate(self, record: DHTRecord) -> bool:
        try:
            return super().validate(record)
        except Exception:
            return False


class RecordRules(RecordValidatorBase):
    """Rules for the records of one run. Use together with `StrictSignatures`, which checks the signatures."""

    def __init__(self, run: str, access: AccessPolicy | None = None, *, max_samples: int = MAX_SAMPLES) -> None:
        """max_samples: the most that one peer may claim for one step."""
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
                return False  # a plain value would replace the entries of all peers
            subkey = MSGPackSerializer.loads(record.subkey)
            rule = self._rules.get(record.key, self._group)
            if rule == self._group and not _is_peer_id(subkey):
                return bool(owner_of(subkey)) and len(record.value) <= MAX_OTHER_BYTES
            if len(record.value) > MAX_RECORD_BYTES or not _expires_in_time(record.expiration_time):
                return False
            return rule(record, subkey, MSGPackSerializer.loads(record.value))
        except Exception:  # msgpack raises a dozen different errors for malformed bytes
            return False

    # A value of None withdraws a record.

    def _metrics(self, record: DHTRecord, subkey: Any, value: Any) -> bool:
        owner = owner_of(subkey)
        return self._may_publish(owner) and (value is None or parse(subkey, value, get_dht_time()).peer_id == owner)

    def _progress(self, record: DHTRecord, subkey: Any, value: Any) -> bool:
        owner = owner_of(subkey)
        return self._may_publish(owner) and (value is None or self._is_plausible(owner, value))

    def _is_plausible(self, owner: str, value: Any) -> bool:
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
        return self._is_allowed_peer(subkey) and (value is None or _is_priority(value))

    def _group(self, record: DHTRecord, subkey: Any, value: Any) -> bool:
        """Validate the declaration that a peer looks for a group, or no longer does.

        The step is part of the key, of which a validator sees only the digest. So this rule applies to every key
        without a rule of its own, and accepts donors' records, too: those of other runs may use the same network.
        """
        return self._is_allowed_peer(subkey) and (value is None or isinstance(value, bool) or _is_priority(value))

    def _is_allowed_peer(self, subkey: Any) -> bool:
        """Check the peer that an unsigned record names; anyone can write such a record in its name."""
        return _is_peer_id(subkey) and self._may_publish(_base58(subkey))

    def _may_publish(self, peer_id: str) -> bool:
        return self._access.allows(peer_id, Action.DHT_RECORD).allowed


def patch_entry_validation() -> None:
    """Make hivemind drop an invalid entry of a dictionary, not the whole dictionary. Call before a DHT is started."""
    DHTProtocol._validate_dictionary = _drop_invalid_entries


def _drop_invalid_entries(self: DHTProtocol, key: bytes, dictionary: Any) -> bool:
    """Replace DHTProtocol._validate_dictionary: in hivemind one forged entry hides all others in the same answer."""
    with dictionary.freeze():
        for subkey, (value, expiration) in list(dictionary.items()):
            if not self._validate_record(key, self.serializer.dumps(subkey), value, expiration):
                del dictionary[subkey]
    return True


def _is_priority(value: Any) -> bool:
    low, high = PRIORITY_RANGE
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_peer_id(subkey: Any) -> bool:
    return isinstance(subkey, bytes) and len(subkey) == 34  # a SHA-256 multihash


def _key_id(key: str) -> bytes:
    return DHTID.generate(source=key).to_bytes()


def _expires_in_time(expiration: float) -> bool:
    return math.isfinite(expiration) and expiration <= get_dht_time() + MAX_LIFETIME


def _base58(peer_id: bytes) -> str:
    import base58

    return base58.b58encode(peer_id).decode()
