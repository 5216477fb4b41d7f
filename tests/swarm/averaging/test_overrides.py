"""Our overrides of hivemind: all are documented, and the upstream faults behind them are still there.

A test of an upstream fault that fails is good news: remove the override, its row in docs/hivemind.md, and the test.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import torch
from hivemind.averaging.averager import DecentralizedAverager
from hivemind.averaging.key_manager import GroupKeyManager
from hivemind.averaging.partition import TensorPartReducer
from hivemind.dht.crypto import RSASignatureValidator
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.validation import DHTRecord
from hivemind.optim.state_averager import initialize_optimizer_state_
from hivemind.utils import MSGPackSerializer, get_dht_time
from hivemind.utils.crypto import RSAPrivateKey
from hivemind.utils.timed_storage import TimedStorage

import ttt.swarm.averaging
import ttt.swarm.dht
from tests.support.waiting import run_async
from ttt.swarm.averaging.training_state import initialize
from ttt.swarm.dht.validation import _drop_invalid_entries

ROOT = Path(__file__).resolve().parents[3]
PATCHES = [
    "hivemind.averaging.averager.Matchmaking", "hivemind.averaging.averager.AllReduceRunner",
    "DHTProtocol._validate_dictionary", "P2P._UNIX_SOCKET_PREFIX", "create_subprocess_exec", "torch.optim.Optimizer",
    "PartReducer",
]  # fmt: skip


def overrides() -> list[str]:
    """`Class.attribute` of everything of hivemind's that a class of ours redefines."""
    names = []
    for package in (ttt.swarm.averaging, ttt.swarm.dht):
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for cls in vars(module).values():
                if not inspect.isclass(cls) or cls.__module__ != module.__name__:
                    continue
                upstream = [base for base in cls.__mro__[1:] if base.__module__.startswith("hivemind.")]
                names += [
                    f"{cls.__name__}.{name}"
                    for name in vars(cls)
                    if any(name in vars(base) for base in upstream)
                    and (name == "__init__" or not name.startswith(("__", "_abc_")))
                ]
    return names


def test_every_override_is_documented() -> None:
    text = (ROOT / "docs" / "hivemind.md").read_text()
    names = [name for name in overrides() if name not in ("RecordRules.__init__", "RobustProgressTracker.__init__")]
    assert len(names) > 35, "the scan no longer finds what it should"
    missing = [name for name in [*names, *PATCHES] if f"{name}`" not in text and f"`{name}" not in text]
    assert not missing, f"add these to docs/hivemind.md, with the upstream fault and a test: {missing}"


def test_the_table_names_only_overrides_and_tests_that_exist() -> None:
    import re

    text = (ROOT / "docs" / "hivemind.md").read_text()
    classes = {name.split(".")[0] for name in overrides()}
    attributes = {*overrides(), "EpochMatchmaking.target_group_size", "EpochMatchmaking.min_group_size"}
    named = {name for name in re.findall(r"`(\w+\.\w+)`", text) if name.split(".")[0] in classes}
    assert named <= attributes, f"no longer overridden: {sorted(named - attributes)}"
    for path in re.findall(r"`((?:tests/e2e|averaging|dht|process|peer)/test_\w+\.py)", text):
        assert (ROOT / path if path.startswith("tests") else ROOT / "tests" / "swarm" / path).exists(), path


# Upstream faults


def test_upstream_reducer_spreads_nan_and_divides_by_zero_and_stalls() -> None:
    async def average(*parts: tuple[torch.Tensor, float]) -> torch.Tensor:
        reducer = TensorPartReducer((torch.Size([2]),), len(parts))
        calls = [reducer.accumulate_part(i, 0, part, weight=weight) for i, (part, weight) in enumerate(parts)]
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 0.5)
        return torch.as_tensor(answers[0])

    ones = torch.ones(2)
    assert run_async(average((ones, 1.0), (torch.full((2,), torch.nan), 1.0))).isnan().all()
    assert run_async(average((ones, 0.0), (ones, 0.0))).isnan().all()
    assert run_async(average((ones, 1.0), (9 * ones, 1e9))).allclose(9 * ones)
    with pytest.raises(TimeoutError):
        run_async(average((ones, 1.0), (torch.ones(3), 1.0)))


def test_upstream_reducer_cancels_the_average_of_all_senders_with_the_call_of_one() -> None:
    async def all_senders() -> None:
        reducer = TensorPartReducer((torch.Size([2]),), 3)
        waiting, cancelled = (asyncio.create_task(reducer.accumulate_part(i, 0, torch.ones(2))) for i in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([waiting, cancelled], timeout=5)
        assert waiting.cancelled()

    run_async(all_senders())


def test_upstream_group_key_has_no_step() -> None:
    keys = GroupKeyManager(SimpleNamespace(peer_id=None), "run_grad_averager", "", None)
    assert keys.current_key == "run_grad_averager.0b"


def test_upstream_all_reduce_is_not_given_the_modes() -> None:
    source = inspect.getsource(DecentralizedAverager._aggregate_with_group)
    assert "modes" in source and "modes=" not in source.partition("_run_allreduce_inplace_")[2]


def test_upstream_statistics_are_created_with_a_step_that_changes_the_parameters() -> None:
    def optimizer() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(3))
        return parameter, torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.5)

    parameter, upstream = optimizer()
    initialize_optimizer_state_(upstream)
    assert not torch.equal(parameter, torch.ones(3))
    parameter, ours = optimizer()
    assert torch.equal(initialize(ours).param_groups[0]["params"][0], torch.ones(3))
    assert set(ours.state[parameter]) == set(upstream.state[upstream.param_groups[0]["params"][0]])


def test_upstream_dictionary_is_dropped_for_one_invalid_entry() -> None:
    import hivemind.dht.protocol as module

    source = inspect.getsource(module)  # the class may be patched already, in this process
    assert "return False" in source.partition("def _validate_dictionary")[2].partition("class ")[0]

    class Protocol:
        serializer = MSGPackSerializer
        record_validator = SimpleNamespace(validate=lambda record: record.value == b"valid")
        _validate_record = DHTProtocol._validate_record

    entries = TimedStorage[str, bytes]()
    expires = get_dht_time() + 60
    for name, value in (("ada", b"valid"), ("eve", b"forged"), ("bob", b"valid")):
        entries.store(name, value, expires)
    assert _drop_invalid_entries(Protocol(), b"key", entries)  # type: ignore[arg-type]
    with entries.freeze():
        assert sorted(name for name, _ in entries.items()) == ["ada", "bob"]


def test_upstream_signature_of_a_broken_key_raises_an_error() -> None:
    validator = RSASignatureValidator(RSAPrivateKey())
    broken = DHTRecord(b"key", b"[owner:ssh-rsa AAAA]", b"value[signature:AAAA]", 1.0)
    with pytest.raises(Exception, match=r".+"):
        validator.validate(broken)
