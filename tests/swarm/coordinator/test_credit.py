"""Credit: what is claimed, as far as the clock, the witnesses and the swarm's progress allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.swarm.peers import ID, record
from ttt.swarm.coordinator.credit import CreditCalculator, share
from ttt.swarm.dht.records import tag_of
from ttt.swarm.history.reader import HistoryReader
from ttt.swarm.history.writer import HistoryWriter

TARGET, STEP_SECONDS = 100, 10.0
SPEEDS = {"ada": 60, "bob": 30, "eve": 10}
"""name -> samples that it really computes in each step"""


def run(
    credit: CreditCalculator,
    steps: int,
    *,
    factors: dict[str, float] | None = None,
    witnessing: bool = True,
    busy: dict[str, float] | None = None,
    first: int = 0,
) -> None:
    """Peers that claim `factor` times what they did; each that is no client reports the weights of the others."""
    factors, busy = factors or {}, busy or {}
    for step in range(first, first + steps + 1):
        done = step  # rounds of averaging
        records = {}
        for name, samples in SPEEDS.items():
            factor = factors.get(name, 1.0)
            seen = {tag_of(ID[o]): float(done * n) for o, n in SPEEDS.items() if o != name} if done else {}
            records[ID[name]] = record(
                name,
                step=step,
                samples=0,
                samples_total=int(factor * samples * done),
                compute_seconds_total=busy.get(name, 0.8 * STEP_SECONDS) * done,
                group_size=len(SPEEDS) if done else 0,
                seen=seen if witnessing else {},
                time=STEP_SECONDS * step,
            )
        credit.update(records, step, STEP_SECONDS * step)


def samples(credit: CreditCalculator) -> dict[str, float]:
    return {name: credit.peers[ID[name]].samples for name in SPEEDS}


def test_honest_peers_get_what_they_did() -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 50)
    assert samples(credit) == pytest.approx({name: 50 * n for name, n in SPEEDS.items()})
    for name in SPEEDS:
        assert credit.peers[ID[name]].seconds == pytest.approx(50 * 0.8 * STEP_SECONDS)
    assert sum(samples(credit).values()) == pytest.approx(50 * TARGET)  # the swarm's progress, all of it


@pytest.mark.parametrize("factor", [2.0, 10.0, 1e6])
def test_who_inflates_does_not_climb(factor: float) -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 50, factors={"eve": factor})
    got = samples(credit)
    assert got["ada"] == pytest.approx(50 * 60, rel=0.02) and got["bob"] == pytest.approx(50 * 30, rel=0.02)
    assert got["eve"] <= 50 * 10 * 1.1 + 1
    eve = credit.peers[ID["eve"]]
    assert eve.claimed_samples == int(50 * 10 * factor)
    assert eve.seconds <= credit.peers[ID["bob"]].seconds * 1.1 / min(factor, 1.1) + 1


def test_without_witnesses_the_largest_claim_gets_what_others_left() -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 50, factors={"ada": 1e6}, witnessing=False)
    assert samples(credit) == pytest.approx({name: 50 * n for name, n in SPEEDS.items()}, rel=0.05)


def test_one_lying_witness_changes_nothing() -> None:
    credit = CreditCalculator({}, TARGET)
    for step in range(31):
        records = {}
        for name in SPEEDS:
            others = {tag_of(ID[o]): float(step * n) for o, n in SPEEDS.items() if o != name} if step else {}
            if name == "eve" and step:  # says that bob did nothing and ada a lot
                others = {tag_of(ID["bob"]): 0.0, tag_of(ID["ada"]): 1e9 * step}
            records[ID[name]] = record(name, step=step, samples_total=SPEEDS[name] * step, seen=others)
        # a second honest witness of each, which computes nothing itself
        seen = {tag_of(ID[o]): float(step * n) for o, n in SPEEDS.items()} if step else {}
        records[ID["dan"]] = record("dan", step=step, seen=seen, auxiliary=True)
        credit.update(records, step, STEP_SECONDS * step)
    assert samples(credit)["bob"] > 30 * 30 * 0.45  # the median of one who saw all and one who saw nothing
    assert samples(credit)["ada"] <= 30 * 60 * 1.1


def test_nobody_computes_longer_than_time_passes() -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 20, busy={"eve": 1e6})
    assert credit.peers[ID["eve"]].seconds <= 20 * STEP_SECONDS
    assert credit.peers[ID["eve"]].claimed_seconds == 20e6


def test_a_restarted_peer_goes_on() -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 10)
    before = samples(credit)
    again = {
        ID[name]: record(name, started=500.0, step=11, samples_total=n, compute_seconds_total=8.0, time=600.0)
        for name, n in SPEEDS.items()
    }
    credit.update(again, 11, 600.0)
    assert samples(credit) == pytest.approx({name: before[name] + n for name, n in SPEEDS.items()})


def test_a_restarted_monitor_goes_on_and_pays_nothing_twice(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "history.sqlite", "run") as history:
        credit = CreditCalculator(history.peers(), TARGET)
        run(credit, 10)
        history.credit(credit.peers.values(), time=100.0)
        later = CreditCalculator(history.peers(), TARGET)
        before = samples(later)
        run(later, 10, first=10)
        history.credit(later.peers.values(), time=200.0)
        with HistoryReader(history.path) as reader:
            stored = {one.peer_id: one.samples for one in reader.peers()}
    assert before == pytest.approx({name: 10 * n for name, n in SPEEDS.items()})
    assert stored == pytest.approx({ID[name]: 20 * n for name, n in SPEEDS.items()}, rel=0.06)


def test_the_fields_stored_in_a_history_keep_their_names() -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 10)
    peer = credit.peers[ID["ada"]]
    stored = json.loads(peer.cursor)
    assert stored["evidence"] == pytest.approx(10 * SPEEDS["ada"]) and "witnessed" in stored
    continued = CreditCalculator({ID["ada"]: peer}, TARGET)
    assert continued._accounts[ID["ada"]].median_total == stored["evidence"]


def test_totals_that_shrink_bring_nothing() -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 10)
    before = samples(credit)
    for turn in range(20):  # up and down, without a restart
        total = 10_000 if turn % 2 else 0
        one = {ID["eve"]: record("eve", step=10, samples_total=total, time=110.0 + turn)}
        credit.update(one, 10, 110.0 + turn)
    assert samples(credit) == before


def test_a_claim_without_an_step_of_the_swarm_waits() -> None:
    credit = CreditCalculator({}, TARGET)
    credit.update({ID["ada"]: record("ada", samples_total=0)}, 5, 0.0)
    credit.update({ID["ada"]: record("ada", samples_total=60)}, 5, 10.0)
    assert credit.peers[ID["ada"]].samples == 0
    credit.update({ID["ada"]: record("ada", samples_total=90)}, 6, 20.0)
    assert credit.peers[ID["ada"]].samples == 90


def test_a_roll_back_takes_nothing_away() -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 10)
    before = samples(credit)
    credit.update({ID["ada"]: record("ada", samples_total=600)}, 4, 200.0)
    assert samples(credit) == before


def test_the_name_is_kept_when_a_peer_hides_it() -> None:
    credit = CreditCalculator({}, TARGET)
    credit.update({ID["ada"]: record("ada", name="Ada")}, 0, 0.0)
    credit.update({ID["ada"]: replace_record("ada")}, 0, 1.0)
    assert credit.peers[ID["ada"]].name == "Ada"


def replace_record(name: str) -> object:
    return record(name, name="")


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1e9), min_size=1, max_size=12), st.floats(0, 1e9))
def test_shares_are_fair_and_within_the_budget(wanted: dict[str, float], budget: float) -> None:
    granted = share(wanted, budget)
    assert granted.keys() == wanted.keys()
    assert sum(granted.values()) <= budget * (1 + 1e-9) + 1e-9
    assert all(0 <= granted[one] <= wanted[one] for one in wanted)
    cut = [granted[one] for one in wanted if granted[one] < wanted[one] * (1 - 1e-9)]
    if cut:
        assert max(cut) == pytest.approx(min(cut), rel=1e-6, abs=1e-6)
        assert all(granted[one] <= max(cut) * (1 + 1e-6) + 1e-6 for one in wanted)
    elif sum(wanted.values()) <= budget:
        assert granted == pytest.approx(wanted)


def test_a_stored_cursor_that_is_broken_begins_anew() -> None:
    credit = CreditCalculator({}, TARGET)
    run(credit, 2)
    broken = {peer_id: replace(peer, cursor='{"nonsense": 1}') for peer_id, peer in credit.peers.items()}
    again = CreditCalculator(broken, TARGET)
    run(again, 1, first=2)
    assert samples(again)["ada"] >= samples(credit)["ada"]
