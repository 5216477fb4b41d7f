"""What goes wrong when one takes part: lines of the log in words, and what to try. Knows neither pages nor networks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TROUBLE = (
    r"error|warn|fail|could not|cannot|can't|not |no |none|only|out of|exception|kill|refus|time|broke|became|needs"
    r"|in use|lost"
)


@dataclass(frozen=True)
class KnownIssue:
    pattern: str
    """Regular expression, looked for in a line of the log without regard to case."""
    cause: str
    remedy: str


KNOWN_ISSUES = (
    KnownIssue(
        r"none of the initial peers answered|bootstrap failed|failed to connect to bootstrap",
        "The peer could not reach any initial peer.",
        "Ask the organiser whether the coordinator runs and whether its port is open to the Internet. From a Space "
        "only ports 80, 443 and 8080 can be reached. If the run was moved, take the new address.",
    ),
    KnownIssue(
        r"is not a peer's address|invalid multiaddr|not a valid multiaddr",
        "The address of the run is not complete.",
        "Copy the whole line that the coordinator prints, from /ip4/ or /dns4/ to the end after /p2p/.",
    ),
    KnownIssue(
        r"daemon did(?: not|n't) start|failed to start in \d|P2PDaemonError",
        "The network program (libp2p's daemon) did not start in time.",
        "The machine is probably overloaded; it is tried again by itself. If it goes on, close other programs.",
    ),
    KnownIssue(
        r"address already in use|failed to listen|is taken by another program",
        "The port is used by another program.",
        "Choose another port, or 0 for any that is free.",
    ),
    KnownIssue(
        r"has announced the run|no peer offered a state|offers the state of the run",
        "The network answers, but nobody in it has the state of this run yet.",
        "Wait: it is asked again every few seconds. If it lasts, the coordinator is off, or the run file is not the "
        "one that the others use.",
    ),
    KnownIssue(
        r"no group was found|could not find a group|it broke up|MatchmakingException|failed to find a group",
        "In one round the peer found nobody to average with, and used its own gradients.",
        "Once in a while that is normal. If it happens often, the steps of this run are too short for its "
        "matchmaking time: the organiser should raise the global batch. A peer that is alone sees it at every step.",
    ),
    KnownIssue(
        r"only \d+% of the data arrived|received \d+(?:\.\d+)?%|AllreduceException|peer .* left or was too slow",
        "Someone left in the middle of a round, or was too slow.",
        "Nothing to do here if it is rare. If it is your own connection: lower the micro-batch, or stop other uploads.",
    ),
    KnownIssue(
        r"out of memory|OutOfMemoryError|not enough memory|can't allocate memory",
        "The memory is full.",
        "Lower the micro-batch (half of it is a good start), raise the cap on GPU memory, or end other programs.",
    ),
    KnownIssue(
        r"ended by SIGKILL|\bkilled\b",
        "The system has ended the peer, most often because memory ran out.",
        "Lower the micro-batch, or choose a machine with more memory (a peer needs about 2 GB beside the model).",
    ),
    KnownIssue(
        r"/dev/shm|--shm-size|No space left on device.*torch_|bus error|SIGBUS",
        "There is too little shared memory (/dev/shm), as in Docker by default.",
        "Start the container with a larger --shm-size (a peer says at its start how much it needs), or --ipc=host.",
    ),
    KnownIssue(
        r"too many open files|Errno 24",
        "The peer may open too few files at once; it needs about 150.",
        "Raise the limit before the app is started: ulimit -n 4096.",
    ),
    KnownIssue(
        r"clock|DHT time|local time must be within|timestamps? differ",
        "The clock of this machine differs from the others' by more than three seconds.",
        "Set the clock by the network (timedatectl set-ntp true).",
    ),
    KnownIssue(
        r"\brelay|\ball\b.*\bclients?\b|\bNAT\b|hole punch",
        "Two peers that nobody can reach cannot reach each other without a third, public one.",
        "If your router can forward a port, tick “Others can reach this machine” and name the port. Otherwise ask the "
        "organiser for an auxiliary peer with a public address.",
    ),
    KnownIssue(
        r"numpy .*installed, and from 2\.4",
        "With this numpy peers would exchange nothing.",
        'Install an older one: pip install "numpy<2.4".',
    ),
    KnownIssue(
        r"\b(?:NaN|infinite|infinity)\b|not finite",
        "Numbers became infinite or undefined; the peer dropped them and took the state of the swarm.",
        "Nothing, if it is rare. If it is only yours, choose precision float32: the GPU may be faulty or overheated.",
    ),
    KnownIssue(
        r"is in use by another peer",
        "Another peer works in the same folder.",
        "Stop that one, or wait: one that is just leaving takes up to two minutes.",
    ),
    KnownIssue(
        r"401|403|gated|Repository Not Found|authentication|invalid token",
        "The Hub did not give a file of the run.",
        "Accept the conditions on the model's page, and give the Space (or this machine) a secret HF_TOKEN that may "
        "read it.",
    ),
    KnownIssue(
        r"cannot schedule new futures after shutdown",
        "An echo of an earlier error: the peer was already ending.",
        "Look for the first error above it in the log.",
    ),
    KnownIssue(
        r"CUDA error|CUDA driver|no kernel image|nvidia driver",
        "The GPU, or its driver, does not work with this torch.",
        "Update the driver, or choose the device cpu to see whether all else works.",
    ),
    KnownIssue(
        r"No space left on device",
        "The disk is full.",
        "Free some space: the peer keeps one backup of the model, and logs.",
    ),
    KnownIssue(
        r"others had averaged already|gradients were lost",
        "The others had averaged before this peer had finished its micro-batch, so that its samples of that step were "
        "lost.",
        "Lower the micro-batch: this machine is slow for it. Once in a while, or when the machine is busy, it is "
        "normal.",
    ),
    KnownIssue(
        r"\btimed? ?out\b|TimeoutError",
        "Someone did not answer in time.",
        "It is tried again by itself. If it happens all the time, your connection or the other side is overloaded.",
    ),
)  # fmt: skip
"""The usual complaints of hivemind's and Petals' users, and our own; the first that fits counts."""


def find_issue(line: str) -> KnownIssue | None:
    """What a line of the log means; None for a line that is no complaint we know."""
    return next((one for one in KNOWN_ISSUES if re.search(one.pattern, line, re.IGNORECASE)), None)


def recent_issues(lines: Iterable[str], most: int = 3) -> list[tuple[str, KnownIssue]]:
    """The newest complaints with the line that told of each, newest first, none twice."""
    found: list[tuple[str, KnownIssue]] = []
    for line in reversed(list(lines)):
        complaint = find_issue(line) if _is_trouble(line) else None
        if complaint is not None and all(complaint is not seen for _, seen in found):
            found.append((line, complaint))
    return found[:most]


def _is_trouble(line: str) -> bool:
    """Progress reports mention clocks and relays too; only lines that sound of trouble are recent_issues."""
    return re.search(_TROUBLE, line, re.IGNORECASE) is not None
