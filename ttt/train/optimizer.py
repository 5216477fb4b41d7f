"""LAMB with its moments in 8 bits, on the CPU or where the parameters are. Knows no model, no loss and no swarm."""

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
"""Elements moved or converted at once where a parameter is not float32 on the device of its state."""
CACHED = 2**20
"""Elements computed at once: their temporaries stay in a processor's cache, so the pass over memory is one."""


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2), as the 2021 run had it.

    For each tensor p with gradient g, after all gradients were scaled down to a joint norm of `max_grad_norm`:

        m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
        update = m / (sqrt(v) + eps) + weight_decay p
        p = p - lr min(|p|, clamp_value) / |update| update        (the ratio is 1 where a norm is 0)

    `bias_correction` divides m by 1 - beta1^t and v by 1 - beta2^t, as the paper does and the run did not.

    Moments have 8 bits with `state_bits=8` (Dettmers et al. 2022, blocks of 4096, dynamic map) but for tensors below
    65,536 elements. All arithmetic is float32, whatever the parameter's type. With `state_device="cpu"` moments and
    arithmetic stay in RAM while parameters are on a GPU. The state exists from the start, so a swarm needs no trial
    step to know its shape. Gradients are not changed.

    A step whose gradients are not all finite changes nothing; `skipped` counts such steps.
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
        """For copies of the optimizer: torch would forget what is not in `defaults`."""
        mine = ("state_bits", "max_grad_norm", "state_device", "skipped")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in mine}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Checks the group and allocates its moments, all zero."""
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
            logger.warning("a step was skipped, its gradients are not finite (%d so far)", self.skipped)
            return loss
        for group in self.param_groups:
            group["step"] += 1
        clip = 1.0 if self.max_grad_norm is None else min(1.0, self.max_grad_norm / (norm + 1e-6))
        buffers: dict[torch.device, Tensor] = {}  # one for all tensors: the largest update
        for p, group in trained:
            home = self._home(p)
            if home not in buffers:
                most = max(q.numel() for q, _ in trained if self._home(q) == home)
                buffers[home] = torch.empty(most, dtype=torch.float32, device=home)
            _update(p, self._state(p, home), group, clip, buffers[home][: p.numel()])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The exact state back, bit for bit; torch's own would turn it into the parameters' type.

        Nothing is changed unless all of it fits: state of another layout, moments that are not finite and settings
        out of range raise CheckpointError (state may come from strangers).
        """
        groups, saved = state_dict["param_groups"], state_dict["state"]
        mine = [group["params"] for group in self.param_groups]
        if [len(g["params"]) for g in groups] != [len(g) for g in mine]:
            raise CheckpointError(
                f"this optimizer has groups of {[len(g) for g in mine]} parameters, "
                f"the state is of {[len(g['params']) for g in groups]}"
            )
        pairs = []
        for theirs, params in zip(groups, mine, strict=True):
            try:
                _check({**self.defaults, **theirs})
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"optimizer state with a setting out of range: {error}") from error
            for number, p in zip(theirs["params"], params, strict=True):
                pairs += moments.matching(self.state[p], saved.get(number, {}), number)
        kept = dict(self.state)
        super().load_state_dict({"state": {}, "param_groups": groups})
        self.state.update(kept)
        for target, source in pairs:
            target.copy_(source)

    def _home(self, p: Tensor) -> torch.device:
        """Where the moments of p are, and where they are computed."""
        return torch.device(self.state_device) if self.state_device else p.device

    def _state(self, p: Tensor, home: torch.device) -> moments.State:
        """Follows a model that was moved after the optimizer was made."""
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
    """Groups for Lamb: matrices and embeddings decay; biases, norms and scales (LayerScale) do not.

    Frozen parameters are left out, shared ones are there once.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    seen = set()
    for part in module.modules():
        is_norm = "Norm" in type(part).__name__
        for name, p in part.named_parameters(recurse=False):
            if p in seen or not p.requires_grad:
                continue
            seen.add(p)
            plain = is_norm or p.dim() < 2 or name.endswith(("bias", "scale"))
            (free if plain else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def linear_schedule(
    optimizer: torch.optim.Optimizer, *, total_steps: int = 31_250, warmup_steps: int = 3_125
) -> LambdaLR:
    """Learning rate from 0 to the optimizer's own over the warm-up, then linearly to 0; the run's was 10 % of all."""
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
    """One tensor's step. `update`: float32 [p.numel()] to work in, on the state's device."""
    if not p.numel():
        return
    assert p.grad is not None
    weights, gradient = p.detach().reshape(-1), p.grad.detach().reshape(-1)  # copies where they are not contiguous
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
    for piece in _pieces(0, p.numel(), PIECE):
        weights[piece].add_(update[piece].to(p.device), alpha=-float(group["lr"]) * trust)
    if not p.is_contiguous():
        p.copy_(weights.view(p.shape))


def _direction(
    w: Tensor, g: Tensor, state: moments.State, part: slice, group: dict[str, Any], clip: float, out: Tensor
) -> None:
    """Advances the moments of elements `part` and writes m / (sqrt(v) + eps) + weight_decay w; all float32 [part]."""
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
    """Of all gradients together; not finite if any element isn't."""
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
