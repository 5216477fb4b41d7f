"""Explains error messages of other programs in a peer's log: hivemind, torch, the Hub and the operating system.

Our own errors need no explanation here: their messages and hints say what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TROUBLE = re.compile(
    r"error|warn|fail|could not|cannot|can't|not |no |none|only|out of|exception|kill|refus|time|became|in use|lost",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class KnownIssue:
    """A message that another program prints."""

    pattern: str
    """Regular expression that is searched for in a line of the log, ignoring case."""
    cause: str
    remedy: str


KNOWN_ISSUES = (
    KnownIssue(
        r"bootstrap failed|failed to connect to bootstrap",
        "The peer could not reach any initial peer.",
        "Ask the organiser whether the coordinator is running and whether its port is open to the Internet. A Space "
        "reaches only ports 80, 443 and 8080. If the run has moved, use the new address.",
    ),
    KnownIssue(
        r"invalid multiaddr|not a valid multiaddr",
        "The address of the run is not complete.",
        "Copy the whole line that the coordinator prints, from /ip4/ or /dns4/ to the end after /p2p/.",
    ),
    KnownIssue(
        r"daemon did(?: not|n't) start|failed to start in \d|P2PDaemonError",
        "The network program (libp2p's daemon) did not start in time.",
        "The machine is probably overloaded. The peer retries by itself; if it keeps failing, close other programs.",
    ),
    KnownIssue(
        r"address already in use|failed to listen",
        "The port is used by another program.",
        "Choose another port, or 0 for any free port.",
    ),
    KnownIssue(
        r"could not find a group|MatchmakingException|failed to find a group",
        "The peer found no other peers to average with in one round, and used its own gradients.",
        "This is normal now and then, and always for a peer that is alone. If it is frequent, the steps are too short "
        "for the run's matchmaking time: ask the organiser to raise the global batch.",
    ),
    KnownIssue(
        r"received \d+(?:\.\d+)?%|AllreduceException",
        "A peer left in the middle of a round, or was too slow.",
        "Ignore this if it is rare. If your own connection is slow, lower the micro-batch or stop other uploads.",
    ),
    KnownIssue(
        r"out of memory|OutOfMemoryError|not enough memory|can't allocate memory",
        "The machine is out of memory.",
        "Halve “Samples at once” (--micro-batch), raise “GPU memory (GiB)” if it is set, or close other programs.",
    ),
    KnownIssue(
        r"torch_\S+.*No space left on device|No space left on device.*torch_|bus error|SIGBUS",
        "There is too little shared memory (/dev/shm), as by default in Docker.",
        "Start the container with a larger --shm-size (a peer prints on startup how much it needs), or --ipc=host.",
    ),
    KnownIssue(
        r"too many open files|Errno 24",
        "The peer is not allowed to open enough files; it needs about 150.",
        "Raise the limit before you start the app: ulimit -n 4096.",
    ),
    KnownIssue(
        r"DHT time|local time must be within|timestamps? differ",
        "The clock of this machine differs from the others' by more than three seconds.",
        "Synchronise the clock with the network: timedatectl set-ntp true.",
    ),
    KnownIssue(
        r"\brelay|\bNAT\b|hole punch",
        "Two peers behind NATs cannot reach each other without a third, public peer.",
        "If your router can forward a port, tick “Reachable from the Internet” under Limits and enter the port. "
        "Otherwise ask the organiser for an auxiliary peer with a public address.",
    ),
    KnownIssue(
        r"401|403|gated|Repository Not Found|authentication|invalid token",
        "The Hub refused a file of the run.",
        "Accept the conditions on the model's page, and give the Space (or this machine) a secret HF_TOKEN that may "
        "read it.",
    ),
    KnownIssue(
        r"cannot schedule new futures after shutdown",
        "This follows from an earlier error: the peer was shutting down already.",
        "Look for the first error above it in the log.",
    ),
    KnownIssue(
        r"CUDA error|CUDA driver|no kernel image|nvidia driver",
        "The GPU or its driver does not work with this version of torch.",
        "Update the driver, or choose the device cpu to see whether everything else works.",
    ),
    KnownIssue(
        r"No space left on device",
        "The disk is full.",
        "Free some space: the peer stores one backup of the model, and logs.",
    ),
    KnownIssue(
        r"\btimed? ?out\b|TimeoutError",
        "Another peer did not answer in time.",
        "The peer retries by itself. If it is frequent, your connection or the other side is overloaded.",
    ),
)
"""The usual problems of hivemind's and Petals' users; the first match counts."""


def find_issue(line: str) -> KnownIssue | None:
    """Return the known issue of a line of the log, or None."""
    return next((issue for issue in KNOWN_ISSUES if re.search(issue.pattern, line, re.IGNORECASE)), None)


def recent_issues(lines: Iterable[str], limit: int = 3) -> list[tuple[str, KnownIssue]]:
    """Return the newest issues with the line of each, newest first and without repetitions."""
    issues: list[tuple[str, KnownIssue]] = []
    for line in reversed(list(lines)):
        # Progress reports mention relays and timeouts too: only lines that sound like trouble are explained.
        issue = find_issue(line) if _TROUBLE.search(line) else None
        if issue is not None and all(issue is not other for _, other in issues):
            issues.append((line, issue))
    return issues[:limit]
