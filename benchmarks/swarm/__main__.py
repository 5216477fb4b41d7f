"""Real swarms on this machine, case by case: does the run survive what the Internet does to it, and what does it cost?

    python -m benchmarks.swarm                                        every case
    python -m benchmarks.swarm --case agree --model reduced           one, with tensors that travel in 8 bits
    python -m benchmarks.swarm --case delayed --steps 30 --peers 3   shorter

Every member is a process group of its own; `traffic` and `cut` also give each a network namespace (root, `ip`).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.swarm.agreement import agree, blockwise, delayed, powersgd
from benchmarks.swarm.costs import endurance, traffic
from benchmarks.swarm.failures import crash, cut, late, restart
from benchmarks.swarm.kinds import auxiliary, client, rollback
from benchmarks.swarm.setup import SIZES, Result, Wanted

CASES: dict[str, Callable[[Path, Wanted], Result]] = {
    "agree": agree, "delayed": delayed, "blockwise": blockwise, "powersgd": powersgd, "crash": crash, "late": late,
    "restart": restart, "rollback": rollback, "cut": cut, "client": client, "auxiliary": auxiliary,
    "traffic": traffic, "endurance": endurance,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="may be given several times; default: all")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument(
        "--model", choices=SIZES, default="tiny",
        help="tiny: the tests', all in 16 bits; reduced: the demo's tensors in fewer layers; demo (traffic: always)",
    )  # fmt: skip
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(1)))  # and every member with us
    wanted, results = Wanted(options.steps, options.peers, options.model), dict[str, Result]()
    for name in options.case or CASES:
        with tempfile.TemporaryDirectory(prefix="swarm-") as folder:
            try:
                results[name] = CASES[name](Path(folder), wanted)
            except AssertionError as error:
                print(error, file=sys.stderr)
                results[name] = {"failed": str(error).splitlines()[0]}
        print(f"{name}:")
        for key, value in results[name].items():
            print(f"  {key:24} {value}", flush=True)
    print(json.dumps({"benchmark": "swarm", "results": results}))


if __name__ == "__main__":
    main()
