"""How long a visitor waits: start to first answer, model ready, first preview, best of 128, on the real app.

    python -m benchmarks.app [--bundle PATH] [--candidates 128] [--runs 3]

Starts `app.py` in a process of its own, as `make run` does after its set-up. Prints a table and ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red circle above a blue square"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="a bundle folder; default: the demo")
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    wanted = parser.parse_args()
    port = _free_port()
    options = ["--bundle", wanted.bundle] if wanted.bundle else []
    started = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        url = f"http://127.0.0.1:{port}/"
        _wait(lambda: _answers(url), app)
        figures = {"first_answer_s": time.perf_counter() - started}
        figures |= _requests(url, started, wanted.candidates, wanted.runs)
    finally:
        app.terminate()
        app.wait(30)
    _print(figures, wanted.candidates)
    return 0


def _requests(url: str, started: float, candidates: int, runs: int) -> dict[str, float]:
    from gradio_client import Client

    client = Client(url, verbose=False)
    model = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/generate"]["parameters"][-1][
        "parameter_default"
    ]
    client.predict(prompt=PROMPT, candidates=4, keep=1, seed=0, model=model, api_name="/generate")
    figures = {"first_images_after_start_s": time.perf_counter() - started}
    previews, wholes, inside = [], [], []
    for seed in range(runs):
        begun = time.perf_counter()
        job = client.submit(prompt=PROMPT, candidates=candidates, seed=seed, model=model, api_name="/generate")
        preview = None
        for _, report in job:
            if preview is None and report.get("preview"):
                preview = time.perf_counter() - begun
        wholes.append(time.perf_counter() - begun)
        previews.append(preview if preview is not None else wholes[-1])
        inside.append(job.result()[1]["seconds"])
    return {
        **figures,
        "first_preview_s": statistics.median(previews),
        "best_of_all_s": statistics.median(wholes),
        "best_of_all_slowest_s": max(wholes),
        "in_the_model_s": statistics.median(inside),
    }


def _print(figures: dict[str, float], candidates: int) -> None:
    words = {
        "first_answer_s": "start to first HTTP answer",
        "first_images_after_start_s": "start to the first images (4 candidates; the model loads meanwhile)",
        "first_preview_s": "request to first preview",
        "best_of_all_s": f"request to best of {candidates} (median)",
        "best_of_all_slowest_s": f"request to best of {candidates} (slowest)",
        "in_the_model_s": "of it sampling, decoding, ranking and saving",
    }
    for name, value in figures.items():
        print(f"{words[name]:<72} {value:7.2f} s")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {"cpus": os.cpu_count(), "load": load, "machine": platform.machine(), "candidates": candidates}
    print(json.dumps({"benchmark": "app", **{k: round(v, 3) for k, v in figures.items()}, **machine}))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _wait(true: Callable[[], bool], app: subprocess.Popen) -> None:
    while not true():
        if app.poll() is not None:
            raise SystemExit(f"the app ended with exit code {app.returncode}")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
