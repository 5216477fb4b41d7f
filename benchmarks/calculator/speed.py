"""CPU time of an estimate and of a full answer of the Memory tab: `python -m benchmarks.calculator.speed`.

Prints a table and ends with one JSON line. Needs neither torch nor a GPU.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from calculator import PRESETS, CalculatorError, TrainingSetup, estimate
from calculator.form import DEFAULTS, EXAMPLES
from calculator.tab import show

SETUPS = (
    TrainingSetup(),
    TrainingSetup(optimizer="adam8bit", precision="mixed-fp16", gradient_checkpointing=True),
    TrainingSetup(zero_stage=3, gpus=8, precision="pure-bf16"),
    TrainingSetup(adapter="lora", precision="mixed-bf16"),
)


def milliseconds(function: Callable[[], Any], rounds: int) -> float:
    """Return the CPU time of one call in milliseconds: the best of five means over `rounds` calls."""
    times = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(rounds):
            function()
        times.append((time.process_time() - started) / rounds)
    return 1000 * min(times)


def estimates() -> dict[str, float]:
    times = {}
    for name in PRESETS:
        for number, setup in enumerate(SETUPS):
            try:
                estimate(name, setup)
            except CalculatorError:  # the model does not support this combination
                continue
            times[f"{name} {number}"] = milliseconds(lambda name=name, setup=setup: estimate(name, setup), 10)  # type: ignore[misc]
    return times


def answers() -> dict[str, float]:
    forms = {**EXAMPLES, **{name: {"model": name, "gpu": "T4"} for name in PRESETS}}
    return {name: milliseconds(lambda form=form: show({**DEFAULTS, **form}, ""), 1) for name, form in forms.items()}  # type: ignore[misc]


def main() -> None:
    one, all_shown = estimates(), answers()
    for title, times in (("one estimate", one), ("an answer of the tab", all_shown)):
        worst = max(times, key=lambda name: times[name])
        print(f"{title}: median {statistics.median(times.values()):.2f} ms, worst {times[worst]:.2f} ms ({worst})")
    print(json.dumps({
        "benchmark": "calculator_speed", "estimate_ms": statistics.median(one.values()),
        "worst_estimate_ms": max(one.values()), "worst_answer_ms": max(all_shown.values()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
