"""Will it fit? Estimate training memory from Python: `python -m examples.estimate_memory`."""

from __future__ import annotations

from dataclasses import replace

from calculator import PRESETS, TrainingSetup, estimate
from calculator.advice import cheapest, largest_batch
from calculator.devices import find_device, verdict

GIB = 2**30


def main() -> None:
    card = find_device("RTX 3060")
    plain = TrainingSetup(batch_size=1, sequence_length=1024)
    model = PRESETS["gpt2-large"]

    m = estimate(model, plain)
    print(f"{model.name}, {m.parameter_count:,} parameters, 32-bit Adam: {verdict(m, card)} on {card.name}")
    for phase in m.phases:
        print(f"  {phase.name:15} {phase.gpu_total / GIB:6.2f} GiB")

    m = estimate(model, replace(plain, optimizer="adam8bit", precision="mixed-fp16", gradient_checkpointing=True))
    print(f"with 8-bit Adam, autocast and checkpointing: {m.gpu_total / GIB:.2f} GiB, {verdict(m, card)}")
    print(f"largest micro-batch then: {largest_batch(model, m.setup, card)}")

    print("the fastest ways to make the first setup fit:")
    for advice in cheapest(model, plain, card):
        print(f"  {', '.join(advice.changes)}: {advice.gpu_total / GIB:.2f} GiB, {advice.verdict}")


if __name__ == "__main__":
    main()
