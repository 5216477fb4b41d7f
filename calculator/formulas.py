"""The formula and the source of every number, with the values of the estimate filled in. Text only."""

from __future__ import annotations

from html import escape

from calculator.memory import GIB, MemoryEstimate
from calculator.techniques import sequence_length

SOURCES = {
    "weights": "one number per parameter, counted tensor by tensor as transformers builds the model",
    "gradients": "one number per trained parameter, in the parameter's dtype (torch.autograd, AccumulateGrad)",
    "optimizer": "Kingma & Ba 2015: two numbers per parameter; bitsandbytes 0.50 (Dettmers et al. 2021): one byte each "
    "and 4 bytes per block of 256, tensors below 4096 elements in 32 bits",
    "activations": "tensors that autograd saves for the backward pass, operation by operation "
    "(torch/tools/autograd/derivatives.yaml); compare Korthikanti et al. 2022, equation 2: sbh(34 + 5as/h)",
    "logits": "log-softmax saves 4 bytes per logit, and its backward pass allocates two more such tensors "
    "(aten nll_loss_backward, _log_softmax_backward_data)",
    "temporaries": "gradients of activations; in the optimizer step, "
    "torch.optim's foreach allocates one number per parameter",
    "buffers": "the batch, rotary angles and hivemind's gradient accumulators (hivemind/optim/grad_averager.py)",
    "RAM": "hivemind keeps float32 weights and averaged gradients (optim/state_averager.py, grad_averager.py); "
    "DeepSpeed's estimators: max(4 GPUs, 16) N x 1.5",
    "context": "0.3 to 2 GiB depending on card and driver, and up to 10 % of fragmentation; not included in the total",
}


def lines(m: MemoryEstimate) -> list[tuple[str, str, str]]:
    """Return rows of (number, formula with its values, source)."""
    setup, n, trained = m.setup, m.parameter_count, m.trained_count
    s = sequence_length(m.model, setup)
    b, v = setup.batch_size, m.model.outputs
    per = m.optimizer / max(1, trained)
    positions = f"{b} x {s:,} positions"
    saved = (
        f"one checkpoint per {setup.every} layer(s)" if setup.every else f"all activations of {m.model.layers} layers"
    )
    if m.model.reversible:
        saved = "two streams, independent of the depth"
    return [
        ("weights", f"{n:,} x {m.parameters / max(1, n):.4g} bytes = {_gib(m.parameters)}", SOURCES["weights"]),
        ("gradients", f"{trained:,} trained x {m.gradients / max(1, trained):.4g} bytes = {_gib(m.gradients)}",
         SOURCES["gradients"]),
        ("optimizer", f"{trained:,} x {per:.4f} bytes = {_gib(m.optimizer)} ({setup.optimizer})", SOURCES["optimizer"]),
        ("activations", f"{positions}; {saved}: at most {_gib(m.activations)}", SOURCES["activations"]),
        ("logits", f"{positions} x {v:,} x (4 saved + 8) bytes: at most {_gib(m.logits)}", SOURCES["logits"]),
        ("temporaries", f"at most {_gib(m.temporaries)}", SOURCES["temporaries"]),
        ("buffers", _gib(m.phases[0].gpu["buffers"]), SOURCES["buffers"]),
        ("GPU", f"the largest phase, {m.peak.name}: {_gib(m.gpu_total)}", "the peak, not the sum of all peaks"),
        ("RAM", " + ".join(f"{name} {_gib(x)}" for name, x in m.ram.items()) or "nothing", SOURCES["RAM"]),
        ("context", f"{_gib(m.overhead[0])} to {_gib(m.overhead[1])}", SOURCES["context"]),
    ]  # fmt: skip


def as_html(m: MemoryEstimate) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td style="text-align:left">{escape(text)}</td>'
        f'<td style="text-align:left">{escape(source)}</td></tr>'
        for name, text, source in lines(m)
    )
    head = '<tr><th scope="col">number</th><th scope="col">formula</th><th scope="col">source</th></tr>'
    return (
        '<div class="calc calc-plain calc-scroll" tabindex="0" role="region" aria-label="Formulas">'
        f"<table>{head}{rows}</table></div>"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.3f} GiB"
