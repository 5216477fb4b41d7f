"""Metrics records: which are accepted, and that everything else is rejected without an error."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.swarm.peers import record
from ttt.swarm.dht.records import MAX_RECORD_BYTES, MAX_SEEN, PeerRecord, record_text, tag_of
from ttt.swarm.process.sanitize import clean_text, safe_name

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from hivemind.utils import MSGPackSerializer
from hivemind.utils.crypto import RSAPrivateKey

from ttt.swarm.dht.identity import peer_id_of
from ttt.swarm.dht.records import owner_of, parse, parse_all
from ttt.swarm.dht.validation import StrictSignatures

KEY = RSAPrivateKey()
SIGNER = StrictSignatures(KEY)
OWNER = owner_of(SIGNER.local_public_key)
RUN = "my-run-g0"


def mine(**fields: Any) -> dict[str, Any]:
    return record("ada", **fields).model_copy(update={"peer_id": OWNER}).model_dump()


@pytest.mark.parametrize(
    "fields",
    [
        {"samples": -1},
        {"samples": 1.0},
        {"samples": True},
        {"samples": 10**16},
        {"samples": 5, "samples_total": 4},
        {"samples_per_second": float("nan")},
        {"samples_per_second": float("inf")},
        {"samples_per_second": -1.0},
        {"loss": float("nan"), "loss_count": 1},
        {"loss": 1.0},
        {"loss_count": 1},
        {"step": 10**9},
        {"step": "3"},
        {"share_received": 1.1},
        {"group_size": 5000},
        {"time": -1.0},
        {"client_mode": 1},
        {"name": "x" * 41},
        {"name": "two\nlines"},
        {"name": "\u202egnp.exe"},
        {"name": "[signature:abc]"},
        {"name": b"bytes"},
        {"device": "a" * 61},
        {"peer_id": "short"},
        {"peer_id": "Qm" + "0" * 44},
        {"seen": {"x": 1.0}},
        {"seen": {tag_of("Q" * 40): float("nan")}},
        {"seen": {tag_of(f"{i:040d}".replace("0", "z")): 1.0 for i in range(MAX_SEEN + 40)}},
        {"surprise": 1},
    ],
)
def test_records_are_strict(fields: dict[str, Any]) -> None:
    good = record("ada").model_dump()
    PeerRecord.model_validate(good)
    with pytest.raises(ValidationError):
        PeerRecord.model_validate({**good, **fields})


def test_the_largest_record_fits() -> None:
    tags = [tag_of("x" * 30 + f"{i:04d}".replace("0", "z")) for i in range(1, 200)]
    seen = dict.fromkeys(tags[:MAX_SEEN], 123456.789)
    full = record(
        "ada", name="ü" * 40, device="d" * 60, software="s" * 40, seen=seen, samples=10**15, samples_total=10**15,
        loss=1.234567, loss_count=10**15, learning_rate=1e-3, share_received=0.5, bytes_sent=10**15,
    )  # fmt: skip
    assert len(MSGPackSerializer.dumps(full.model_dump())) < MAX_RECORD_BYTES


def test_a_record_survives_msgpack() -> None:
    full = mine(loss=2.5, loss_count=3, samples=3, samples_total=9, seen={tag_of(OWNER): 4.0})
    back = MSGPackSerializer.loads(MSGPackSerializer.dumps(full))
    assert parse(SIGNER.local_public_key, back, time.time()).model_dump() == full


def test_the_owner_of_a_key_is_its_libp2p_id() -> None:
    assert peer_id_of(KEY.get_public_key().to_bytes()) == OWNER
    for broken in (b"", b"[owner:]", b"[owner:ssh-rsa AAAA]", b"x" + SIGNER.local_public_key, "text", None, 3):
        with pytest.raises(ValueError, match="not signed|signed by a broken key"):
            owner_of(broken)
    with pytest.raises(ValueError, match="broken key"):
        owner_of(b"[owner:ssh-rsa " + b"A" * 300 + b"]")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (record("bob").model_dump(), "signed by another peer"),
        (mine(time=time.time() + 3600), "from the future: its clock is wrong"),
        ({**mine(), "<b>": 1}, "field that is unknown"),
        ({**mine(), "samples": "<script>"}, "field samples: int_type"),
        (None, "field (all): model_type"),
        ([1, 2], "field (all): model_type"),
    ],
)
def test_reasons_contain_nothing_that_a_stranger_wrote(value: Any, reason: str) -> None:
    entries = {SIGNER.local_public_key: SimpleNamespace(value=value), b"junk": SimpleNamespace(value=mine())}
    reading = parse_all(entries, time.time())
    assert reading.records == {}
    assert dict(reading.dropped) == {reason: 1, "not signed by a peer's key": 1}


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(junk, junk, st.sampled_from(sorted(PeerRecord.model_fields)))
def test_junk_is_dropped_and_never_raises(whole: Any, value: Any, name: str) -> None:
    for content in (whole, {**mine(), name: value}):
        reading = parse_all({SIGNER.local_public_key: SimpleNamespace(value=content)}, time.time())
        assert len(reading.records) + sum(reading.dropped.values()) == 1


# Names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Ada", "Ada"),
        ("<script>alert(1)</script>", "&#60;script&#62;alert&#40;1&#41;&#60;&#47;script&#62;"),
        ("**bold** [link](http://x)", None),
        ("  a \t b\n", "a b"),
        ("\u202eevil\u200b", "evil"),
        ("名前 Ünïcode", "名前 Ünïcode"),
        ("", "peer 12345678"),
        (None, "peer 12345678"),
        (b"bytes", "peer 12345678"),
    ],
)
def test_names_are_safe_to_show(name: object, shown: str | None) -> None:
    safe = safe_name(name, "Qm12345678")
    if shown is not None:
        assert safe == shown
    assert not set(safe) & set("<>\"'`*_[]()|~\\{}!\n")


@given(st.text(max_size=200))
def test_any_name_is_short_one_line_and_without_markup(name: str) -> None:
    from html import unescape

    safe = safe_name(name, "Qm12345678")
    assert not set(safe) & set("<>\"'`*_[]()|~\\{}!\n\r\u202e\u2028")
    assert 1 <= len(unescape(safe)) <= 40
    assert clean_text(clean_text(name, 40), 40) == clean_text(name, 40)
    PeerRecord(**{**record("ada").model_dump(), "name": record_text(name, 40)})


def test_towers_of_accents_are_cut() -> None:
    assert len(clean_text("a" + "\u0300" * 50, 40)) <= 4


def test_a_record_is_plain_json_too() -> None:
    assert json.loads(record("ada").model_dump_json())["name"] == "ada"
