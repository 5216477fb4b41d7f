"""From Start to the first counted sample, on loopback: a coordinator with the tiny model, and one peer by the launcher.

`python -m benchmarks.contribute [--repeats 3]`: what a volunteer waits for, step by step. Beside it the time that this
machine takes to import what a peer imports, which is most of it: the ratio is what can be compared between machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.swarm import LocalSwarm, tiny_run
from ttt.swarm.process.control_files import DesiredState
from ttt.swarm.process.launcher import Launcher

PATIENCE = 180.0


def seconds_of_imports() -> float:
    """Of a fresh interpreter that loads what a peer loads."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import ttt.swarm.peer.peer"], check=True)
    return time.perf_counter() - began


def once(folder: Path, run: str, address: str) -> dict[str, float]:
    """Seconds from Start to each state seen and to the first sample, and from Stop to the end."""
    launcher, seen = Launcher(folder), dict[str, float]()
    began = time.perf_counter()
    launcher.start(DesiredState(run=run, initial_peers=[address], host="127.0.0.1", micro_batch=8))
    try:
        while "first sample" not in seen:
            view, now = launcher.view(), time.perf_counter() - began
            if now > PATIENCE:
                raise SystemExit(f"no sample within {PATIENCE:.0f} s: {view.phase} {view.reason}")
            if view.status is not None and view.status.pid == view.peer_pid:
                seen.setdefault(view.status.state, now)
            if view.contribution.samples:
                seen["first sample"] = now
            time.sleep(0.05)
    finally:
        stopped = time.perf_counter()
        launcher.stop()
        launcher.wait_until_off(PATIENCE)
    return {**seen, "stop to off": time.perf_counter() - stopped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with LocalSwarm(folder / "swarm", tiny_run(folder)) as swarm:
            address = swarm.coordinator().status.addresses[0]
            imports = statistics.median(seconds_of_imports() for _ in range(repeats))
            rounds = [once(folder / f"peer-{i}", str(swarm.run_file), address) for i in range(repeats)]
    names = ["connecting", "downloading", "computing", "first sample", "stop to off"]
    medians = {name: statistics.median(one[name] for one in rounds if name in one) for name in names
               if any(name in one for one in rounds)}  # fmt: skip
    print(f"{'':16}{'seconds':>9}")
    for name, seconds in {"imports alone": imports, **medians}.items():
        print(f"{name:16}{seconds:9.1f}")
    result = {"imports_s": imports, "start_to_first_sample_s": medians["first sample"],
              "ratio_to_imports": medians["first sample"] / imports, "stop_to_off_s": medians["stop to off"],
              "repeats": repeats}  # fmt: skip
    print(json.dumps({"benchmark": "contribute", **{k: round(v, 2) for k, v in result.items()}}))


if __name__ == "__main__":
    main()
