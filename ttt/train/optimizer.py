"""LAMB with its moments in 8 bits, on the CPU or on the device of the parameters. Independent of model and loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ttt.errors import CheckpointError, InvalidInput
from ttt.train import moments

logger = logging.getLogger(__name__)

PIECE = 2**24
"""Elements moved or converted at once if a parameter is not float32 on the device of its state."""
CACHED = 2**20
"""Elements computed at once: their temporaries stay in the processor's cache, so that memory is read only once."""


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2), as in the 2021 run.

    For each tensor p with gradient g, after all gradients have been scaled down to a joint norm of `max_grad_norm`:

        m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
        update = m / (sqrt(v) + eps) + weight_decay p
        p = p - lr min(|p|, clamp_value) / |update| update        (the ratio is 1 if a norm is 0)

    `bias_correction` divides m by 1 - beta1^t and v by 1 - beta2^t, as the paper does and the run did not.

    With `state_bits=8` the moments of tensors of at least 65,536 elements have 8 bits (Dettmers et al. 2022, blocks of
    4096, dynamic map). All arithmetic is float32, whatever the type of the parameter. With `state_device="cpu"`,
    moments and arithmetic stay in RAM while the parameters are on a GPU. The state exists from the start, so that a
    swarm needs no trial step to learn its shape. Gradients are not changed.

    A step with a gradient that is NaN or infinite changes nothing; `skipped` counts such steps.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.96),
        eps: float = 1e-6,
        weight_decay: float = 0.045,
        *,
        state_bits: Literal[8, 32] = 8,
        max_grad_norm: float | None = 4.0,
        clamp_value: float = 10_000.0,
        bias_correction: bool = False,
        state_device: str | None = None,
    ) -> None:
        if state_bits not in (8, 32):
            raise InvalidInput(f"state_bits must be 8 or 32, got {state_bits!r}")
        if max_grad_norm is not None and not 0 < max_grad_norm < math.inf:
            raise InvalidInput(f"max_grad_norm must be a number above 0, or None, got {max_grad_norm!r}")
        if state_bits == 8:
            moments.bitsandbytes()
        self.state_bits, self.max_grad_norm, self.state_device = state_bits, max_grad_norm, state_device
        self.skipped = 0
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "clamp_value": clamp_value,
            "bias_correction": bias_correction, "step": 0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """For copies of the optimizer: torch would drop what is not in `defaults`."""
        own = ("state_bits", "max_grad_norm", "state_device", "skipped")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check the group and allocate its moments, all zero."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group)
        for p in group["params"]:
            if not p.is_floating_point():
                raise InvalidInput(f"Lamb trains real floating-point parameters, got one of {p.dtype}")
            self.state[p] = moments.zeros(p, self._home(p), self.state_bits)

    def state_bytes(self) -> int:
        """Bytes of all moments and their scales."""
        return sum(t.nbytes for state in self.state.values() for t in state.values())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = _norm_of_gradients([p for p, _ in trained])
        if not math.isfinite(norm):
            self.skipped += 1
            logger.warning("a step was skipped because its gradients are NaN or infinite (%d so far)", self.skipped)
            return loss
        for group in self.param_groups:
            group["step"] += 1
        clip = 1.0 if self.max_grad_norm is None else min(1.0, self.max_grad_norm / (norm + 1e-6))
        buffers: dict[torch.device, Tensor] = {}  # shared by all tensors, as large as the largest update
        for p, group in trained:
            home = self._home(p)
            if home not in buffers:
                largest = max(q.numel() for q, _ in trained if self._home(q) == home)
                buffers[home] = torch.empty(largest, dtype=torch.float32, device=home)
            _update(p, self._state(p, home), group, clip, buffers[home][: p.numel()])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state bit for bit; torch's own method would convert it to the type of the parameters.

        State of another layout, with NaN or infinite moments or with settings out of range raises CheckpointError, and
        nothing is changed: it may come from strangers.
        """
        groups, saved = state_dict["param_groups"], state_dict["state"]
        own = [group["params"] for group in self.param_groups]
        if [len(g["params"]) for g in groups] != [len(g) for g in own]:
            raise CheckpointError(
                f"this optimizer has groups of {[len(g) for g in own]} parameters, "
                f"the state has groups of {[len(g['params']) for g in groups]}"
            )
        pairs = []
        for theirs, params in zip(groups, own, strict=True):
            try:
                _check({**self.defaults, **theirs})
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"optimizer state with a setting out of range: {error}") from error
            for number, p in zip(theirs["params"], params, strict=True):
                pairs += moments.matching(self.state[p], saved.get(number, {}), number)
        state = dict(self.state)  # torch's method replaces the dictionary
        super().load_state_dict({"state": {}, "param_groups": groups})
        self.state.update(state)
        for target, source in pairs:
            target.copy_(source)

    def _home(self, p: Tensor) -> torch.device:
        """The device on which the moments of p are stored and computed."""
        return torch.device(self.state_device) if self.state_device else p.device

    def _state(self, p: Tensor, home: torch.device) -> moments.State:
        """The moments of p, moved to `home` if the model was moved after the optimizer was created."""
        state = self.state[p]
        for name, value in state.items():
            state[name] = value.to(home)
        return state


class ClippedAdamW(torch.optim.AdamW):
    """torch's AdamW with the gradients of each step scaled down to a joint norm of `max_grad_norm`.

    As with `Lamb`, gradients are not changed, and a step whose gradients are not all finite changes nothing: scaling
    by a norm of NaN would make every gradient NaN.
    """

    def __init__(self, params: Any, *, max_grad_norm: float, **kwargs: Any) -> None:
        self.max_grad_norm = max_grad_norm
        super().__init__(params, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies of the optimizer: torch copies only what is in `defaults`."""
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in trained]
        norm = float(nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            logger.warning("skipped a step: its gradients are not finite")
            return loss
        try:
            if norm > self.max_grad_norm:
                for p in trained:
                    p.grad = p.grad * (self.max_grad_norm / norm)
            super().step()
        finally:
            for p, gradient in zip(trained, gradients, strict=True):
                p.grad = gradient
        return loss


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for Lamb: matrices and embeddings decay; biases, norms and scales (LayerScale) do not.

    Frozen parameters are left out, and shared ones appear once.
    """
    decayed: list[Tensor] = []
    undecayed: list[Tensor] = []
    seen = set()
    for part in module.modules():
        is_norm = "Norm" in type(part).__name__
        for name, p in part.named_parameters(recurse=False):
            if p in seen or not p.requires_grad:
                continue
            seen.add(p)
            is_undecayed = is_norm or p.dim() < 2 or name.endswith(("bias", "scale"))
            (undecayed if is_undecayed else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def linear_schedule(
    optimizer: torch.optim.Optimizer, *, total_steps: int = 31_250, warmup_steps: int = 3_125
) -> LambdaLR:
    """The learning rate rises linearly from 0 to the optimizer's rate during the warm-up, then falls linearly to 0."""
    if not 0 <= warmup_steps <= total_steps or total_steps < 1:
        raise InvalidInput(
            f"a schedule needs total_steps of at least 1 and a warm-up no longer than that, "
            f"got {total_steps} and {warmup_steps}"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, factor)


def _update(p: Tensor, state: moments.State, group: dict[str, Any], clip: float, update: Tensor) -> None:
    """The step of one tensor. `update` is working memory: float32 [p.numel()] on the device of the state."""
    if not p.numel():
        return
    assert p.grad is not None
    weights, gradient = p.detach().reshape(-1), p.grad.detach().reshape(-1)  # copies where they are not contiguous
    # First pass: the direction and both norms, piece by piece. The trust ratio needs the norms of the whole tensor.
    norms: list[tuple[Tensor, Tensor]] = []
    for piece in _pieces(0, p.numel(), PIECE):
        w, g = (x[piece].to(update.device, torch.float32) for x in (weights, gradient))
        for part in _pieces(0, w.numel(), CACHED):
            whole = slice(piece.start + part.start, piece.start + part.stop)
            u = update[whole]
            _direction(w[part], g[part], state, whole, group, clip, out=u)
            norms.append((torch.linalg.vector_norm(w[part]), torch.linalg.vector_norm(u)))
    weight_norm, update_norm = (float(torch.stack(n).double().square().sum().sqrt()) for n in zip(*norms, strict=True))
    trust = min(weight_norm, group["clamp_value"]) / update_norm if weight_norm and update_norm else 1.0
    # Second pass: the update itself.
    for piece in _pieces(0, p.numel(), PIECE):
        weights[piece].add_(update[piece].to(p.device), alpha=-float(group["lr"]) * trust)
    if not p.is_contiguous():
        p.copy_(weights.view(p.shape))


def _direction(
    w: Tensor, g: Tensor, state: moments.State, part: slice, group: dict[str, Any], clip: float, out: Tensor
) -> None:
    """Update the moments of elements `part` and write m / (sqrt(v) + eps) + weight_decay w to `out`; float32 [part]."""
    beta1, beta2 = group["betas"]
    m, v = moments.decayed(state, "exp_avg", part, beta1), moments.decayed(state, "exp_avg_sq", part, beta2)
    m.add_(g, alpha=(1 - beta1) * clip)
    v.addcmul_(g, g, value=(1 - beta2) * clip**2)
    torch.sqrt(v, out=out)
    if group["bias_correction"]:
        out.div_(math.sqrt(1 - beta2 ** group["step"]))
    torch.div(m, out.add_(group["eps"]), out=out)
    if group["bias_correction"]:
        out.div_(1 - beta1 ** group["step"])
    if group["weight_decay"]:
        out.add_(w, alpha=group["weight_decay"])
    moments.store(state, "exp_avg", part, m)
    moments.store(state, "exp_avg_sq", part, v)


def _pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _norm_of_gradients(params: list[Tensor]) -> float:
    """The joint norm of all gradients; NaN or infinite if any element is."""
    norms = []
    for p in params:
        assert p.grad is not None
        if p.grad.layout != torch.strided:
            raise InvalidInput("Lamb needs dense gradients: make the embedding with sparse=False")
        norms.append(torch.linalg.vector_norm(p.grad, dtype=torch.promote_types(p.grad.dtype, torch.float32)))
    if not norms:
        return 0.0
    return float(torch.stack([n.to(norms[0].device) for n in norms]).double().square().sum().sqrt())


def _check(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    ranges = {
        "lr": (0 <= group["lr"] < math.inf, "at least 0"),
        "betas": (0 <= beta1 < 1 and 0 <= beta2 < 1, "two numbers, each at least 0 and below 1"),
        "eps": (0 < group["eps"] < math.inf, "above 0"),
        "weight_decay": (0 <= group["weight_decay"] < math.inf, "at least 0"),
        "clamp_value": (group["clamp_value"] > 0, "above 0"),
        "step": (group["step"] >= 0, "at least 0"),
    }
    for name, (good, allowed) in ranges.items():
        if not good:
            raise InvalidInput(f"{name} must be {allowed}, got {group[name]!r}")
