"""The default access policy."""

from __future__ import annotations

from ttt.swarm.dht.access import Action, AllowAll, Decision


def test_by_default_every_peer_may_do_everything() -> None:
    assert all(AllowAll().allows("any peer", action) for action in Action)


def test_a_decision_counts_as_its_verdict() -> None:
    assert Decision(True) and not Decision(False, "banned")
