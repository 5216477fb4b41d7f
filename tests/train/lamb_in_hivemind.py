"""A program: one hivemind peer whose optimizer is Lamb. Prints "good" if it trains exactly as Lamb does alone."""

from __future__ import annotations

import copy
import os
import signal
from functools import partial

import hivemind
import torch
from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.optim.state_averager import dump_optimizer_state, load_optimizer_state
from hivemind.utils import MSGPackSerializer
from torch import nn

from ttt.train.optimizer import Lamb, linear_schedule, parameter_groups

EPOCHS = 3
schedule = partial(linear_schedule, total_steps=10, warmup_steps=2)


def gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 320), nn.LayerNorm(320))  # 81,920 weights: 8 bits
    alone = copy.deepcopy(model)
    dht = hivemind.DHT(start=True, startup_timeout=60)
    peer = hivemind.Optimizer(
        dht=dht, run_id="lamb", target_batch_size=1, batch_size_per_step=1, params=parameter_groups(model, 0.045),
        optimizer=Lamb, scheduler=schedule, offload_optimizer=True, delay_optimizer_step=False,
        delay_state_averaging=False, matchmaking_time=0.5, averaging_timeout=5,
    )  # fmt: skip
    try:
        assert same(model, alone), "creating the optimizer changed the weights"
        plain = Lamb(parameter_groups(alone, 0.045))
        rates = schedule(plain)
        while peer.local_epoch < EPOCHS:
            gradients(model, peer.local_epoch)
            peer.step()
        for epoch in range(EPOCHS):
            gradients(alone, epoch)
            plain.step()
            rates.step()
        inner = peer.state_averager.optimizer
        assert isinstance(inner, Lamb) and inner.param_groups[0]["step"] == EPOCHS
        assert same(model, alone), "a peer alone must train as Lamb does"
        check_transfer(inner)
        print("good", flush=True)
    finally:
        peer.shutdown()
        dht.shutdown()


def check_transfer(donor: Lamb) -> None:
    """The state that one peer sends and another loads is the same, bit for bit."""
    metadata, tensors = dump_optimizer_state(donor)
    assert {t.dtype for t in tensors} == {torch.uint8, torch.float32}
    metadata = MSGPackSerializer.loads(MSGPackSerializer.dumps(metadata))
    received = [deserialize_torch_tensor(serialize_torch_tensor(t)) for t in tensors]
    twins = [{**group, "params": [p.detach().clone() for p in group["params"]]} for group in donor.param_groups]
    fresh = Lamb(twins, lr=1.0)
    load_optimizer_state(fresh, metadata, received)
    for sent, loaded in zip(dump_optimizer_state(donor)[1], dump_optimizer_state(fresh)[1], strict=True):
        assert sent.dtype == loaded.dtype and torch.equal(sent, loaded)
    assert fresh.param_groups[0]["lr"] == donor.param_groups[0]["lr"]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


if __name__ == "__main__":
    os.setsid()
    try:
        main()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)  # the daemons of the DHT and the averagers
