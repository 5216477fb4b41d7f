"""The command line: `python -m calculator gpt2-large --optimizer adam8bit --fits "RTX 3060"`."""

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
from calculator.setup import help_text


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 0: estimated (with --fits: it fits, or is close); 1: does not fit; 2: bad input."""
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
    parser = argparse.ArgumentParser(prog="python -m calculator", description="Estimate training memory.")
    parser.add_argument(
        "model", nargs="?", default="gpt2", help=f"a preset ({', '.join(PRESETS)}) or the path of a config.json"
    )
    parser.add_argument("--hub", help="download the config.json of this Hub model")
    parser.add_argument("--family", help=f"define a model by its dimensions: {', '.join(USED)}")
    dimensions = parser.add_argument_group("dimensions, with --family")
    for name, size in SIZES.items():
        families = ", ".join(family for family, used in USED.items() if name in used)
        dimensions.add_argument("--" + name.replace("_", "-"), type=int, help=f"for {families}; default: {size}")
    parser.add_argument("--token", help="Hub token, for gated models")
    parser.add_argument("--fits", metavar="GPU", help="a GPU or its memory in GiB; exit code 0 if it fits, else 1")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON")
    for field in fields(TrainingSetup):
        default = None if field.default is MISSING else field.default
        kind, action = _kind(str(field.type))
        flag = "--" + field.name.replace("_", "-")
        if action:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=_help(field.name))
        else:
            extra: dict[str, Any] = {"nargs": "?", "const": True} if kind is _switch else {}
            parser.add_argument(flag, type=kind, default=default, help=_help(field.name), **extra)
    return parser


def _speed(advice: dict[str, Any]) -> str:
    """The time of a step, relative to the original setup; unknown if something else is trained."""
    percent = round(100 * (advice["time"] - 1))
    if not advice["exact"]:
        return ", trains differently"
    return f", {abs(percent)} % {'slower' if percent > 0 else 'faster'} per step" if percent else ""


def _help(name: str) -> str:
    choices = ", ".join(TrainingSetup.__dataclass_fields__[name].metadata["choices"])
    return (f"{help_text(name)} ({choices})" if choices else help_text(name)).replace("%", "%%")


def _kind(annotation: str) -> tuple[Any, bool]:
    if annotation in ("bool", "bool | None"):
        return None, True
    if annotation.startswith(("bool | ",)):
        return _switch, False
    return {"int": int, "int | None": int, "float": float}.get(annotation, str), False


def _switch(text: str) -> bool | int | str:
    """Parse an option with an optional value: `--gradient-checkpointing`, `--gradient-checkpointing 2`."""
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
        raise CalculatorError(f"{', '.join(sizes)}: dimensions need a family, for example --family gpt2")
    if hub:
        return from_hub(hub, token=token)
    path = Path(model)
    if model.endswith(".json") or path.is_dir():
        path = path / "config.json" if path.is_dir() else path
        try:
            with path.open("rb") as file:
                return from_json(file.read(2_000_000))
        except OSError as error:
            raise CalculatorError(f"cannot read {path}: {error.strerror}") from None
    if model not in PRESETS:
        raise CalculatorError(
            f"unknown model {model!r}; presets: {', '.join(PRESETS)}. For a model of the Hub use --hub {model}, "
            f"for another one the path of its config.json"
        )
    return model


def _show(m: MemoryEstimate, device: Device | None) -> None:
    low, high = m.overhead
    print(f"{m.model.name}: {m.parameter_count:,} parameters, {m.trained_count:,} trained")
    print(
        f"GPU {gib(m.gpu_total)} at its peak ({m.peak.name}), "
        f"plus {gib(low)} to {gib(high)} of CUDA context and fragmentation"
    )
    print(f"RAM {gib(m.ram_total)}")
    for note in m.notes:
        print(f"note: {note}")
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
            f"a swarm step sends and receives {sent:.3f} GiB each: "
            f"{m.swarm.seconds:.0f} s at {m.setup.bandwidth_mbit:g} Mbit/s"
        )
    if device:
        _advise(advice.as_dict(m, device), device)


def _advise(advised: dict[str, Any], device: Device) -> None:
    print(f"\n{device.name} ({device.gib:g} GiB): {advised['verdict']}")
    print(f"largest micro-batch that fits: {advised['largest_batch'] or 'none'}")
    if advised["longest_sequence"] is not None:
        print(f"longest sequence that fits: {advised['longest_sequence'] or 'none'}")
    for a in advised["advice"]:
        print(f"  {a['verdict']} with {', '.join(a['changes'])}: {gib(a['gpu_total'])}{_speed(a)}")


if __name__ == "__main__":
    sys.exit(main())
