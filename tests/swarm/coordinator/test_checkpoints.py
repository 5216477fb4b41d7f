"""Checkpoints: whole or not there, checked, few; and states that fit, bit for bit."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.backups import distance_of
from tests.support.swarm import tiny_run
from tests.support.tiny import tiny_dalle, write_tiny_bundle
from ttt import TextToImage
from ttt.atomic import write_atomically
from ttt.errors import CheckpointError, InvalidInput, SwarmError
from ttt.swarm.averaging.training_state import TrainingState, initialize, is_finite, parameters_of, restore, snapshot
from ttt.swarm.config.run_config import CheckpointSection, OptimizerSection, RunSettings
from ttt.swarm.coordinator.checkpoints import CheckpointStore, damaged, load_state, only, read_checkpoint, to_keep
from ttt.swarm.coordinator.generations import FILE, newest_generation, read_generation, roll_back, write_generation
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.history.reader import HistoryReader
from ttt.swarm.history.schema import HISTORY_FILE
from ttt.swarm.history.types import CheckpointEntry as Row
from ttt.swarm.history.writer import HistoryWriter
from ttt.swarm.peer.recovery import load_backup, save_backup
from ttt.swarm.process.lifecycle import locked_folder
from ttt.swarm.process.status import PeerStatus, write_status
from ttt.swarm.training.run_model import make_optimizer
from ttt.train.optimizer import parameter_groups

NAMES = [name for name, _ in tiny_dalle().named_parameters()]
POLICY = CheckpointSection(keep_last=2, keep_hourly=0, keep_daily=0)


def trained(name: str = "lamb8bit", steps: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A tiny model after a few steps on noise, in the order of the model's parameters."""
    dalle = tiny_dalle().train()
    settings = OptimizerSection.model_validate({"name": name, "bias_correction": name != "adamw"})
    optimizer = make_optimizer([{"params": list(dalle.parameters()), "weight_decay": 0.1}], settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for p in dalle.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return dalle, optimizer


def state_of(step: int = 3, name: str = "lamb8bit") -> TrainingState:
    return snapshot(trained(name)[1], NAMES, step, copy=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> object:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.mark.parametrize("name", ["lamb8bit", "lamb", "adamw"])
def test_a_state_moves_to_another_optimizer_bit_for_bit(name: str) -> None:
    state, (_, other) = state_of(7, name), trained(name, steps=1)
    different = snapshot(other, NAMES, 0).tensors
    assert any(not torch.equal(different[key], value) for key, value in state.tensors.items())
    restore(other, NAMES, state)
    again = snapshot(other, NAMES, 7)
    assert again.scalars == state.scalars
    assert again.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(again.tensors[key], value) for key, value in state.tensors.items())
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(p.shape, generator=generator) for p in parameters_of(other)]
    one, two = trained(name)[1], other
    for optimizer in (one, two):  # both continue alike
        for p, g in zip(parameters_of(optimizer), gradients, strict=True):
            p.grad = g
        for group in optimizer.param_groups:
            group["step"] = 7
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters_of(one), parameters_of(two), strict=True))


@pytest.mark.parametrize("name", ["lamb8bit", "adamw"])
def test_making_the_statistics_changes_nothing(name: str) -> None:
    dalle = tiny_dalle()
    before = [p.detach().clone() for p in dalle.parameters()]
    settings = OptimizerSection.model_validate({"name": name, "weight_decay": 0.9})
    optimizer = initialize(make_optimizer(parameter_groups(dalle, 0.9), settings))
    assert all(torch.equal(a, b) for a, b in zip(before, dalle.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == settings.learning_rate
    assert all(optimizer.state[p] for p in parameters_of(optimizer))
    assert all(float(s.get("step", 0)) == 0 for s in optimizer.state.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(next(iter(t))), "another model or optimizer"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra"),
        (lambda t: t.update({k: v[..., :1] for k, v in list(t.items())[:1]}), "expected"),
        (lambda t: t.update({k: v.double() for k, v in list(t.items())[:1]}), "float64"),
        (lambda t: t.update({k: v * float("nan") for k, v in list(t.items())[:1]}), "NaN"),
        (lambda t: t.update({k: v + float("inf") for k, v in list(t.items())[-1:]}), "infinity"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: object, message: str) -> None:
    state = state_of()
    change(state.tensors)  # type: ignore[operator]
    _, optimizer = trained(steps=1)
    before = snapshot(optimizer, NAMES, 0, copy=True)
    with pytest.raises(CheckpointError, match=message):
        restore(optimizer, NAMES, state)
    after = snapshot(optimizer, NAMES, 0)
    assert all(torch.equal(after.tensors[key], value) for key, value in before.tensors.items())


def test_finite_means_every_element() -> None:
    good = [torch.ones(3), torch.zeros(2, 2), torch.arange(4, dtype=torch.uint8)]
    assert is_finite(good)
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite([*good, torch.tensor([0.0, bad])])


def test_a_checkpoint_paints_while_it_is_kept_and_gives_the_state_back(tmp_path: Path, bundle: object) -> None:
    store, state = CheckpointStore(tmp_path, "tiny", POLICY), state_of(12)
    saved = store.save(state, tiny_dalle(), bundle, generation=1)  # type: ignore[arg-type]
    assert (store.root / "latest").read_text() == saved.path.name == "step-00000012"
    pipe = TextToImage.from_pretrained(saved.bundle)
    weights = dict(pipe.dalle.named_parameters())
    assert all(torch.equal(weights[n], state.tensors[f"parameters/{n}"]) for n in NAMES)
    loaded = only(load_state(store.newest()), NAMES)  # type: ignore[arg-type]
    assert (loaded.step, loaded.scalars) == (12, state.scalars)
    assert all(torch.equal(loaded.tensors[key], value) for key, value in state.tensors.items())
    assert loaded.tensors.keys() == state.tensors.keys()


def test_damage_is_seen_and_an_older_checkpoint_taken(tmp_path: Path, bundle: object) -> None:
    store = CheckpointStore(tmp_path, "tiny", POLICY)
    old, new = (store.save(state_of(e), tiny_dalle(), bundle, generation=0) for e in (1, 2))  # type: ignore[arg-type]
    assert store.newest() == new
    weights = new.bundle / "dalle.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # one bit
    weights.write_bytes(data)
    assert damaged(new) == weights
    with pytest.raises(CheckpointError, match="dalle.safetensors"):
        load_state(new)
    assert store.newest() == old
    (old.path / "manifest.json").write_text("{}")
    assert read_checkpoint(old.path) is None
    assert store.newest() is None


def test_a_writer_that_dies_leaves_no_half_checkpoint(tmp_path: Path, bundle: object) -> None:
    store, state = CheckpointStore(tmp_path, "tiny", POLICY), state_of(5)
    broken = replace(state, scalars={"x": object()})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        store.save(broken, tiny_dalle(), bundle, generation=0)  # type: ignore[arg-type]
    assert store.all() == []
    assert list(store.root.iterdir()) == []
    (store.root / ".step-00000005.partial").mkdir()  # that of a killed process does not interfere
    assert store.save(state, tiny_dalle(), bundle, generation=0).step == 5  # type: ignore[arg-type]


def test_the_policy_keeps_the_last_ones_and_one_an_hour_and_a_day() -> None:
    minute = 60.0
    times = [1_000_000 * 86_400 + index * 10 * minute for index in range(3 * 144)]  # three days, every ten minutes
    policy = CheckpointSection(keep_last=2, keep_hourly=3, keep_daily=2)
    kept = sorted(to_keep(times, policy))
    last = len(times) - 1
    assert kept == [287, last - 12, last - 6, last - 1, last]
    assert to_keep([], policy) == set()
    assert to_keep(times, CheckpointSection(keep_last=1, keep_hourly=0, keep_daily=0)) == {last}


def test_old_checkpoints_are_forgotten(tmp_path: Path, bundle: object) -> None:
    store = CheckpointStore(tmp_path, "tiny", POLICY)
    for step in (1, 2, 3):
        store.save(state_of(step), tiny_dalle(), bundle, generation=0)  # type: ignore[arg-type]
    assert [one.step for one in store.all()] == [2, 3]


@pytest.mark.parametrize("wrong", [9_000_000_000.0, 0.0])
def test_a_clock_that_was_put_right_changes_no_order(
    tmp_path: Path, bundle: object, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    store = CheckpointStore(tmp_path, "tiny", CheckpointSection(keep_last=2, keep_hourly=2, keep_daily=0))
    for step, now in ((1, 100.0), (2, wrong), (3, 4000.0), (4, 4100.0)):
        monkeypatch.setattr("ttt.swarm.coordinator.checkpoints.time.time", lambda now=now: now)
        saved = store.save(state_of(step), tiny_dalle(), bundle, generation=0)  # type: ignore[arg-type]
        assert store.newest() == saved
    kept = [one.step for one in store.all()]
    assert kept[-2:] == [3, 4] and kept[0] < 3, "another hour's stays too"


def test_what_was_just_written_stays_though_a_damaged_one_comes_after_it(tmp_path: Path, bundle: object) -> None:
    store = CheckpointStore(tmp_path, "tiny", CheckpointSection(keep_last=1, keep_hourly=0, keep_daily=0))
    later = store.save(state_of(30), tiny_dalle(), bundle, generation=0)  # type: ignore[arg-type]
    (later.bundle / "dalle.safetensors").write_bytes(b"damaged")
    saved = store.save(state_of(25), tiny_dalle(), bundle, generation=0)  # type: ignore[arg-type]
    assert store.newest() == saved


def test_a_checkpoint_takes_its_place_when_every_byte_is_on_the_disk(
    tmp_path: Path, bundle: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = syncs(monkeypatch)
    late: list[Path] = []
    seen: list[str] = []
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        if target.parent.name == "checkpoints":
            late.extend(one for one in (path, *path.rglob("*")) if one.stat().st_ino not in synced)
            seen.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    store = CheckpointStore(tmp_path, "tiny", POLICY)
    store.save(state_of(), tiny_dalle(), bundle, generation=0)  # type: ignore[arg-type]
    assert seen == ["step-00000003"] and not late
    assert store.root.stat().st_ino in synced, "else its new name may be lost"


def test_only_what_must_survive_a_power_cut_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = syncs(monkeypatch)
    write_status(tmp_path, PeerStatus())
    write_atomically(tmp_path / "other", b"")
    assert not synced
    write_generation(tmp_path, Announcement(generation=1))
    assert synced == [path.stat().st_ino for path in (tmp_path / FILE, tmp_path)], "the content before the name"


def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes of what is synced from now on."""
    done: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.fstat(handle).st_ino))
    return done


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"generation": 1, "founded": 1.0}'])
def test_checkpoints_give_the_generation_if_its_file_does_not(tmp_path: Path, content: bytes | None) -> None:
    warnings: list[str] = []
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    newest = newest_generation(tmp_path, [0, 3, 2], warnings.append)
    assert newest is not None and newest.generation == 3
    assert [FILE in text and "generation 3 is used" in text for text in warnings] == [True] * (content in (b"", b"{}"))


def test_without_checkpoints_an_unreadable_generation_file_is_an_error(tmp_path: Path) -> None:
    assert newest_generation(tmp_path, []) is None
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(
        SwarmError,
        match=r"generation.json, which counts the roll-backs of the run, cannot be read \(it is damaged\).*delete it",
    ):
        newest_generation(tmp_path, [])
    announcement = Announcement(generation=4)
    write_generation(tmp_path, announcement)
    assert newest_generation(tmp_path, []) == newest_generation(tmp_path, [3, 4]) == announcement


def run_of_three(tmp_path: Path, bundle: object) -> tuple[RunSettings, Path, CheckpointStore]:
    """A coordinator's folder with checkpoints of steps 10, 20 and 30."""
    settings = tiny_run(tmp_path, checkpoints={"keep_last": 5})
    folder = tmp_path / "coordinator"
    store = CheckpointStore(folder, "tiny", settings.checkpoints)
    for step in (10, 20, 30):
        store.save(state_of(step), tiny_dalle(), bundle, generation=0)  # type: ignore[arg-type]
    return settings, folder, store


@pytest.mark.parametrize("content", [None, b""])
def test_no_generation_is_used_twice_though_its_file_is_lost(
    tmp_path: Path, bundle: object, content: bytes | None
) -> None:
    settings, folder, store = run_of_three(tmp_path, bundle)
    for step, generation in ((20, 1), (20, 2), (10, 3)):  # none of them saves anything before the next
        kept = roll_back(folder, settings, step)
        assert kept == store.newest() and kept.manifest.generation == generation
        (folder / FILE).unlink() if content is None else (folder / FILE).write_bytes(content)


def test_a_rollback_begins_a_new_generation_and_drops_what_came_later(tmp_path: Path, bundle: object) -> None:
    settings, folder, store = run_of_three(tmp_path, bundle)
    write_generation(folder, Announcement(generation=0))
    with HistoryWriter(folder / HISTORY_FILE, "tiny") as history:
        for one in store.all():
            history.add_checkpoint(Row(float(one.step), one.step, 0, None, f"checkpoints/{one.path.name}", ""))
    with pytest.raises(CheckpointError, match="there are: 10, 20, 30"):
        roll_back(folder, settings, 15)
    with locked_folder(folder), pytest.raises(InvalidInput, match="in use"):
        roll_back(folder, settings, 20)
    assert roll_back(folder, settings, 20).step == 20
    assert [one.step for one in store.all()] == [10, 20]
    found = read_generation(folder)
    assert found is not None
    assert found.generation == 1
    with HistoryReader(folder / HISTORY_FILE) as reader:
        assert [row.step for row in reader.checkpoints()] == [20, 10]
        [event] = reader.events()
        assert (event.kind, event.text) == ("rollback", "to step 20")
    with pytest.raises(SwarmError, match="does not exist"):
        roll_back(tmp_path / "nowhere", settings, 20)


def test_a_roll_back_that_is_broken_off_can_be_made_again(
    tmp_path: Path, bundle: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it had not yet done, what it had dropped is not the newest of a new generation."""
    settings, folder, store = run_of_three(tmp_path, bundle)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            roll_back(folder, settings, 20)
    assert read_generation(folder) is None, "a new generation would have begun with step 30"
    assert roll_back(folder, settings, 20).step == 20
    assert [one.step for one in store.all()] == [10, 20] and read_generation(folder) is not None


def test_a_backup_comes_back_and_only_for_its_generation(tmp_path: Path) -> None:
    state = state_of(4)
    assert load_backup(tmp_path) is None
    save_backup(tmp_path, state, generation=2)
    assert load_backup(tmp_path, generation=1) is None
    loaded = load_backup(tmp_path, generation=2)
    assert loaded is not None
    assert loaded.step == 4
    assert distance_of(state, loaded) == 0
    another = snapshot(trained("lamb8bit", steps=1)[1], NAMES, 4)
    assert 0 < distance_of(state, another) < 1
    assert json.loads(json.dumps(loaded.scalars)) == state.scalars
    (tmp_path / "backup.safetensors").write_bytes(b"broken")
    assert load_backup(tmp_path) is None
