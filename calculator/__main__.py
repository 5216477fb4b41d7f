"""`python -m calculator gpt2-large --optimizer adam8bit --fits "RTX 3060"`. Owns the command line alone."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from calculator import PRESETS, Architecture, CalculatorError, MemoryEstimate, TrainingSetup, advice, estimate
from calculator.custom import SIZES, USED, custom
from calculator.devices import Device, find_device, verdict
from calculator.hf_config import from_hub, from_json
from calculator.memory import GIB
from calculator.report import as_dict, gib
from calculator.setup import field_help


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: estimated (and it fits, or is tight); 1: does not fit; 2: refused input."""
    arguments = vars(_parser().parse_args(argv))
    model, as_json, fits = arguments.pop("model"), arguments.pop("json"), arguments.pop("fits")
    try:
        device = find_device(fits) if fits else None
        m = estimate(_model(model, arguments), TrainingSetup(**arguments))
    except CalculatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    answer = verdict(m, device) if device else None
    if as_json:
        print(json.dumps(as_dict(m) | (advice.as_dict(m, device) if device else {}), indent=2))
    else:
        _show(m, device)
    return 1 if answer == "does not fit" else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m calculator", description="Memory of training a model.")
    parser.add_argument(
        "model", nargs="?", default="gpt2", help=f"one of {', '.join(PRESETS)}; a path of a config.json"
    )
    parser.add_argument("--hub", help="the config.json of this Hub model instead")
    parser.add_argument("--family", help=f"a model by its dimensions instead: {', '.join(USED)}")
    dimensions = parser.add_argument_group("dimensions, with --family")
    for name, size in SIZES.items():
        families = ", ".join(family for family, used in USED.items() if name in used)
        dimensions.add_argument("--" + name.replace("_", "-"), type=int, help=f"{families}; default {size}")
    parser.add_argument("--token", help="Hub token, for gated models")
    parser.add_argument("--fits", metavar="GPU", help="name of a GPU or GiB: exit code 0 if it fits, else 1")
    parser.add_argument("--json", action="store_true", help="print JSON")
    described = field_help()
    for field in fields(TrainingSetup):
        default = None if field.default is MISSING else field.default
        kind, action = _kind(str(field.type))
        flag = "--" + field.name.replace("_", "-")
        if action:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=described.get(field.name)
            )
        else:
            extra: dict[str, Any] = {"nargs": "?", "const": True} if kind is _switch else {}
            parser.add_argument(flag, type=kind, default=default, help=described.get(field.name), **extra)
    return parser


def _kind(annotation: str) -> tuple[Any, bool]:
    if annotation in ("bool", "bool | None"):
        return None, True
    if annotation.startswith(("bool | ",)):
        return _switch, False
    return {"int": int, "int | None": int, "float": float}.get(annotation, str), False


def _switch(text: str) -> bool | int | str:
    """An option that is on without a value: `--gradient-checkpointing`, `--gradient-checkpointing 2`."""
    words = {"true": True, "false": False, "none": False}
    if text.lower() in words:
        return words[text.lower()]
    return int(text) if text.isdigit() else text


def _model(model: str, arguments: dict[str, Any]) -> Architecture | str:
    hub, token, family = (arguments.pop(name) for name in ("hub", "token", "family"))
    sizes = {name: size for name in SIZES if (size := arguments.pop(name)) is not None}
    if family:
        return custom(family, **sizes)
    if sizes:
        raise CalculatorError(f"{', '.join(sizes)}: dimensions belong to a family, e.g. --family gpt2")
    if hub:
        return from_hub(hub, token=token)
    if model.endswith(".json"):
        try:
            with Path(model).open("rb") as file:
                return from_json(file.read(2_000_000))
        except OSError as error:
            raise CalculatorError(f"cannot read {model}: {error.strerror}") from None
    return model


def _show(m: MemoryEstimate, device: Device | None) -> None:
    low, high = m.overhead
    print(f"{m.model.name}: {m.parameter_count:,} parameters, {m.trained_count:,} trained")
    print(
        f"GPU {gib(m.gpu_total)} at its peak ({m.peak.name}), "
        f"and {gib(low)} to {gib(high)} of CUDA context and fragmentation"
    )
    print(f"RAM {gib(m.ram_total)}")
    names = list(m.phases[0].gpu)
    width = max(map(len, names)) + 2
    print("\n" + "GiB".ljust(width) + "".join(p.name.rjust(16) for p in m.phases))
    for name in names:
        print(name.ljust(width) + "".join(f"{p.gpu[name] / GIB:16.3f}" for p in m.phases))
    print("total".ljust(width) + "".join(f"{p.gpu_total / GIB:16.3f}" for p in m.phases))
    for name, size in m.ram.items():
        print(f"RAM, {name}: {gib(size)}")
    if m.swarm:
        sent = (m.swarm.gradients + m.swarm.state) / GIB
        print(
            f"a swarm step sends {sent:.3f} GiB and receives as much: "
            f"{m.swarm.seconds:.0f} s at {m.setup.bandwidth_mbit:g} Mbit/s"
        )
    if device:
        _advise(advice.as_dict(m, device), device)


def _advise(said: dict[str, Any], device: Device) -> None:
    print(f"\n{device.name} ({device.gib:g} GiB): {said['verdict']}")
    print(f"largest micro-batch that fits: {said['largest_batch'] or 'none'}")
    if said["longest_sequence"] is not None:
        print(f"longest sequence that fits: {said['longest_sequence'] or 'none'}")
    for a in said["advice"]:
        print(
            f"  {a['verdict']} with {', '.join(a['changes'])}: "
            f"{gib(a['gpu_total'])}, a step takes {a['time']:.2f} times as long"
        )


if __name__ == "__main__":
    sys.exit(main())
