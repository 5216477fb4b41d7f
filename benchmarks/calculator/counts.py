"""Exact counts: parameters on the meta device, and the real tensors of optimizer states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calculator import PRESETS, TrainingSetup, estimate, parameter_count
from calculator.hf_config import READERS
from calculator.presets import CONFIGS

MIB = 2**20


@dataclass(frozen=True)
class Row:
    name: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def table(rows: Iterable[Row], unit: str = "MiB") -> str:
    size = MIB if unit == "MiB" else 1
    lines = [f"| case | predicted, {unit} | measured, {unit} | error |", "|---|---:|---:|---:|"]
    for r in rows:
        digits = ".1f" if size > 1 else ",d"
        p, m = (r.predicted / size, r.measured / size) if size > 1 else (r.predicted, r.measured)
        lines.append(f"| {r.name} | {p:{digits}} | {m:{digits}} | {100 * r.error:+.2f} % |")
    return "\n".join(lines)


def unique_bytes(values: Iterable[Any]) -> int:
    """Bytes of all storages; shared ones count once."""
    storages = [x.untyped_storage() for x in values if isinstance(x, torch.Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def parameter_rows() -> list[Row]:
    """Compare the parameters of every preset with a real model on the meta device."""
    return [Row(name, parameter_count(name), _meta_parameters(name)) for name in PRESETS]


def _meta_parameters(name: str) -> int:
    import transformers as hf

    if name in CONFIGS:
        kind = CONFIGS[name]["model_type"]
        with torch.device("meta"):
            built = getattr(hf, next(iter(READERS[kind].classes)))(hf.AutoConfig.for_model(**CONFIGS[name]))
        return sum(p.numel() for p in built.parameters())
    a = PRESETS[name]
    common = {"vocab_size": a.vocabulary}
    gpt = {"n_embd": a.hidden, "n_layer": a.layers, "n_head": a.heads, "n_positions": a.positions}
    with torch.device("meta"):
        model: nn.Module
        if a.family == "bert":
            model = hf.BertForPreTraining(hf.BertConfig(
                hidden_size=a.hidden, num_hidden_layers=a.layers, num_attention_heads=a.heads,
                intermediate_size=a.feed_forward, **common))  # fmt: skip
        elif a.family == "t5":
            model = hf.T5ForConditionalGeneration(hf.T5Config(
                d_model=a.hidden, num_layers=a.layers, num_heads=a.heads, d_kv=a.head_size, d_ff=a.feed_forward,
                **common))  # fmt: skip
        elif a.family == "gptj":
            model = hf.GPTJForCausalLM(hf.GPTJConfig(**gpt, **common))
        elif a.family == "gpt2":
            model = hf.GPT2LMHeadModel(hf.GPT2Config(**gpt, **common))
        else:
            from ttt.config import PAPER
            from ttt.model.dalle import Dalle

            model = Dalle(PAPER)
    return sum(p.numel() for p in model.parameters())


def optimizer_rows() -> list[Row]:
    """Compare optimizer state with the real tensors of bitsandbytes and PyTorch, for GPT-2's tensor shapes."""
    import bitsandbytes as bnb

    a = PRESETS["gpt2"].__class__(
        family="gpt2", hidden=192, layers=2, heads=3, feed_forward=768, vocabulary=5003, positions=128
    )
    made: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "adam8bit": bnb.optim.Adam8bit, "adamw8bit": bnb.optim.AdamW8bit, "lamb8bit": bnb.optim.LAMB8bit,
        "lion8bit": bnb.optim.Lion8bit, "sgd8bit": lambda p: bnb.optim.SGD8bit(p, lr=1e-3, momentum=0.9),
        "adam": bnb.optim.Adam, "lamb": bnb.optim.LAMB, "lion": bnb.optim.Lion, "adafactor": _adafactor,
    }  # fmt: skip
    rows = []
    for name, make in made.items():
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(n_embd=192, n_layer=2, n_head=3, vocab_size=5003, n_positions=128)
        parameters = list(GPT2LMHeadModel(config).parameters())
        optimizer = make(parameters)
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        measured = unique_bytes(t for t in state if t.dim())
        rows.append(Row(name, estimate(a, TrainingSetup(optimizer=name)).optimizer, measured))
    return rows


def _adafactor(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(parameters, lr=1e-3, relative_step=False, scale_parameter=False)
