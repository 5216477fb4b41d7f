"""Records that the DHT of a run accepts: signed and well-formed ones, and nothing else."""

from __future__ import annotations

import pickle
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import base58
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import CompositeValidator, DHTRecord
from hivemind.utils import MSGPackSerializer
from hivemind.utils.crypto import RSAPrivateKey

from tests.swarm.peers import record
from ttt.swarm.averaging.group_messages import group_key
from ttt.swarm.dht.access import AccessPolicy, Action, Decision
from ttt.swarm.dht.records import metrics_key, owner_of
from ttt.swarm.dht.validation import RecordRules, StrictSignatures

SIGNER = StrictSignatures(RSAPrivateKey())
OWNER = owner_of(SIGNER.local_public_key)
RUN = "my-run-g0"
PEER = b"\x12\x20" + bytes(32)
GROUP = group_key(f"{RUN}_state_averager", 7)


def mine(**fields: Any) -> dict[str, Any]:
    return record("ada", **fields).model_copy(update={"peer_id": OWNER}).model_dump()


def dht_record(key: str, value: Any, subkey: Any = SIGNER.local_public_key, lifetime: float = 60.0) -> DHTRecord:
    return DHTRecord(
        DHTID.generate(source=key).to_bytes(),
        MSGPackSerializer.dumps(subkey),
        value if isinstance(value, bytes) else MSGPackSerializer.dumps(value),
        time.time() + lifetime,
    )


def plain(record: DHTRecord) -> DHTRecord:
    """A value under the key itself, where each peer should have an entry of its own."""
    return replace(record, subkey=DHTProtocol.IS_REGULAR_VALUE)


def signed(record: DHTRecord) -> DHTRecord:
    return replace(record, value=SIGNER.sign_value(record))


def accepts(record: DHTRecord, access: AccessPolicy | None = None, max_samples: int = 100) -> bool:
    rules = CompositeValidator([SIGNER, RecordRules(RUN, access, max_samples=max_samples)])
    return rules.validate(record)


def progress(**fields: Any) -> dict[str, Any]:
    good = {
        "peer_id": base58.b58decode(OWNER), "epoch": 3, "samples_accumulated": 5, "samples_per_second": 1.0,
        "time": time.time(), "client_mode": False,
    }  # fmt: skip
    return {**good, **fields}


def test_the_dht_accepts_signed_and_valid_records() -> None:
    assert accepts(signed(dht_record(metrics_key(RUN), mine())))
    assert accepts(signed(dht_record(f"{RUN}_progress", progress())))
    assert accepts(signed(dht_record(f"{RUN}_progress", None)))  # withdrawn
    assert accepts(dht_record(f"{RUN}_state_averager.all_averagers", 5.0, subkey=PEER))
    assert accepts(signed(dht_record("my-run_run", {"generation": 1}, lifetime=86_400)))
    for epoch in (0, 7, 31_250):
        key = group_key(f"{RUN}_grad_averager", epoch)
        assert accepts(dht_record(key, True, subkey=PEER)) and accepts(dht_record(key, False, subkey=PEER))


@pytest.mark.parametrize(
    "record",
    [
        dht_record(metrics_key(RUN), mine()),  # no signature
        signed(dht_record(metrics_key(RUN), mine(), subkey=b"[owner:nobody]")),
        signed(dht_record(metrics_key(RUN), mine(), subkey="ada")),
        signed(dht_record(metrics_key(RUN), record("bob").model_dump())),
        signed(dht_record(metrics_key(RUN), {**mine(), "extra": 1})),
        signed(dht_record(metrics_key(RUN), b"\xc1garbage")),
        signed(dht_record(metrics_key(RUN), mine(), lifetime=1e6)),
        signed(dht_record(metrics_key(RUN), mine(), lifetime=float("inf"))),
        signed(dht_record(f"{RUN}_progress", progress(epoch=10**9))),
        signed(dht_record(f"{RUN}_progress", progress(epoch=-1))),
        signed(dht_record(f"{RUN}_progress", progress(samples_accumulated=101))),
        signed(dht_record(f"{RUN}_progress", progress(samples_per_second=float("inf")))),
        signed(dht_record(f"{RUN}_progress", progress(samples_per_second=float("nan")))),
        signed(dht_record(f"{RUN}_progress", progress(peer_id=PEER))),
        signed(dht_record(f"{RUN}_progress", progress(time=time.time() + 3600))),
        signed(dht_record(f"{RUN}_progress", progress(), subkey=None)),
        dht_record(f"{RUN}_state_averager.all_averagers", float("inf"), subkey=PEER),
        dht_record(f"{RUN}_state_averager.all_averagers", "high", subkey=PEER),
        dht_record(f"{RUN}_state_averager.all_averagers", 5.0, subkey=b"short"),
        dht_record(GROUP, "yes", subkey=PEER),
        dht_record(GROUP, {"a": 1}, subkey=PEER),
        dht_record(GROUP, b"\xc1garbage", subkey=PEER),
        dht_record(GROUP, True, subkey=PEER[:-1]),
        dht_record(GROUP, True, subkey="ada"),
        dht_record(GROUP, True, subkey=[1]),
        dht_record(GROUP, True),  # in the name of a key that has not signed it
        dht_record(GROUP, True, subkey=PEER, lifetime=1e6),  # no peer looks for a group for days
        dht_record(GROUP, True, subkey=PEER, lifetime=float("nan")),
        plain(dht_record(GROUP, True)),  # it would replace the entries of all peers
        plain(dht_record("anything else", 1)),
        dht_record("anything else", {"a": 1}, subkey="x"),
        signed(dht_record("anything else", "x" * 70_000)),
    ],
)
def test_the_dht_refuses_the_rest(record: DHTRecord) -> None:
    assert not accepts(record)


def test_a_tampered_record_is_refused() -> None:
    good = signed(dht_record(metrics_key(RUN), mine()))
    assert not accepts(replace(good, expiration_time=good.expiration_time + 1))
    assert not accepts(replace(good, value=good.value.replace(b"ada", b"eve")))
    assert not accepts(replace(good, value=good.value + b"[signature:YWJj]"))


def test_the_access_policy_is_asked() -> None:
    questions: list[tuple[str, Action]] = []

    class RefuseAll(AccessPolicy):
        def allows(self, peer_id: str, action: Action) -> Decision:
            questions.append((peer_id, action))
            return Decision(False, "refused")

    assert not accepts(signed(dht_record(metrics_key(RUN), mine())), RefuseAll())
    assert not accepts(signed(dht_record(f"{RUN}_progress", progress())), RefuseAll())
    assert not accepts(dht_record(f"{RUN}_state_averager.all_averagers", 5.0, subkey=PEER), RefuseAll())
    assert not accepts(dht_record(GROUP, True, subkey=PEER), RefuseAll())
    assert {action for _, action in questions} == {Action.DHT_RECORD}
    assert questions[0][0] == questions[1][0] == OWNER


def test_the_rules_can_be_sent_to_the_process_of_the_dht() -> None:
    """`DHT.add_validators` pickles them, between processes of one machine."""
    rules = pickle.loads(pickle.dumps(RecordRules(RUN, max_samples=100)))
    assert rules.validate(dht_record(f"{RUN}_progress", progress()))
    assert not rules.validate(dht_record(f"{RUN}_progress", progress(epoch=-1)))
