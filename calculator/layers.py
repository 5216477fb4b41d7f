"""Simulates a stack of identical layers on a tape: plain, checkpointed, reversible, or with shared weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calculator.tape import ActivationGradient, Slot, Storage, Tape, Value

LayerFunction = Callable[[Value], Value]


def run_layers(
    tape: Tape, x: Value, layer: LayerFunction, count: int, *, groups: int | None = None, every: int | None = None
) -> Value:
    """Simulate one of `count` identical layers and account for the others arithmetically.

    groups: sets of weights shared by the layers (None: one set per layer); every: layers per checkpoint (None: off).
    The saved tensors of a layer live from its forward to its backward pass, and its gradients from then on. Between
    the first and the last layer, live bytes therefore change linearly, so the peak is at one of these two.
    """
    groups = count if groups is None else groups
    if every is None:
        return _simulate_stack(tape, x, layer, count, groups)

    def segment(x: Value) -> Value:
        return _simulate_stack(tape, x, layer, min(every, count), min(groups, every, count))

    return _simulate_stack(
        tape, x, lambda x: _checkpoint(tape, x, segment), -(-count // every), max(1, groups // every), True
    )


def _simulate_stack(
    tape: Tape, x: Value, layer: LayerFunction, count: int, groups: int, checkpointed: bool = False
) -> Value:
    memory = tape.memory
    before, live, cast = memory.peaks(), memory.live, tape.cast_bytes
    memory.restart()  # measure the peak of this layer by itself
    first = len(tape.nodes)
    x = layer(x)
    cast = tape.cast_bytes - cast
    tape.all_cast_bytes += groups * cast
    # What is alive now and was not before is what the layer saved for the backward pass, and its output.
    saved = memory.live - live - cast
    (peak, gradients, activation_gradients), without, accumulating = memory.peaks()
    # Layers that share weights also share autocast's copies of them.
    others_kept = (count - 1) * saved + (groups - 1) * cast
    cast_apart = (groups - 1) * cast if checkpointed else 0  # no node saves these copies
    placeholder = [Storage(memory, others_kept - cast_apart)]
    if cast_apart:
        tape.cast_placeholders.append(Storage(memory, cast_apart))
    # In the forward pass, the last layer is the worst: all others have saved their tensors already.
    memory.set_peaks(before, ((peak + others_kept, gradients, activation_gradients), without, accumulating))
    if len(tape.nodes) == first or x.slot is None:
        return x
    state: list[Any] = []

    # Two extra nodes surround those of the layer. Nodes run in reverse order, so that `enter` runs before them.
    def enter() -> None:
        state[:] = [memory.peaks(), memory.gradients, tape.ahead]
        memory.restart()
        state.append(ActivationGradient(memory, tape.ahead))
        tape.ahead = 0  # count it once, also when layers are nested

    def leave() -> None:
        earlier, head_gradients, tape.ahead, _ = state
        layer_gradients = memory.gradients - head_gradients
        # The last layer is the first one in the backward pass: all others still hold their saved tensors.
        as_last = memory.peaks()
        (peak, gradients, activation_gradients), without, accumulating = as_last
        part = -(-layer_gradients // tape.gradient_parts)
        more = (groups - 1) * part
        others_saved = others_kept - cast_apart
        # The first layer comes last: the others have freed their tensors, but their gradients exist.
        as_first = (peak - others_saved + more, gradients + more, activation_gradients)
        if groups < count:
            # A shared weight has its gradient already; this layer's is added to it.
            shared = head_gradients + groups * part
            as_first = max(as_first, (max(without, accumulating) - others_saved + shared, shared, activation_gradients))
        placeholder.clear()
        retained = more - (layer_gradients - part)  # the simulated layer, too, retains only its part
        tape.placeholders.append(Storage(memory, retained))
        memory.gradients += retained
        memory.set_peaks(earlier, as_last, (as_first, without, accumulating))

    tape.nodes.insert(first, leave)  # type: ignore[arg-type]
    tape.nodes.append(enter)  # type: ignore[arg-type]
    return x


def _checkpoint(tape: Tape, x: Value, layer: LayerFunction) -> Value:
    """Save only the input and recompute the layer in the backward pass (torch.utils.checkpoint, non-reentrant)."""
    first = len(tape.nodes)
    out = layer(Value(x.storage, x.n, x.width, Slot()))
    del tape.nodes[first:]
    slot = Slot()

    def recompute(incoming: list[Storage | None]) -> None:
        # Autocast's cache is empty while a checkpoint recomputes: the weights are cast again.
        tape.casts, outer = {}, tape.casts
        mark = len(tape.nodes)
        inside = Value(x.storage, x.n, x.width, Slot())
        again = layer(inside)
        again.slot.gradient = incoming.pop()  # type: ignore[union-attr]
        del again
        tape.casts = outer
        tape.backward(mark)
        if x.slot is not None and inside.slot.gradient is not None:  # type: ignore[union-attr]
            tape.deliver(x.slot, inside.slot.gradient)  # type: ignore[union-attr]

    tape.nodes.append(((slot,), recompute, (), 0))
    return Value(out.storage, out.n, out.width, slot)


ReversibleBlock = tuple[LayerFunction, LayerFunction, int, int]
"""f and g of `y1 = x1 + f(x2); y2 = x2 + g(y1)`, the number of such blocks, and of weight sets they share."""


def run_reversible(tape: Tape, x: Value, blocks: list[ReversibleBlock]) -> Value:
    """Keep only the two final streams and recompute block inputs from outputs (RevNet, Gomez et al. 2017)."""
    y1, y2 = _reversible_forward(tape, x, blocks)
    slots = (Slot(), Slot())

    def recompute(incoming: list[Storage | None]) -> None:
        outputs = [y1, y2]
        streams = [tape.new(x.n, x.width), tape.new(x.n, x.width)]  # recovered inputs; dy1 and dy2 are `incoming`
        for f, g, count, groups in reversed(blocks):
            _reversible_backward(tape, (f, g), count, groups, outputs[0], incoming)
        del streams, outputs
        if x.slot is not None:
            while incoming:
                tape.deliver(x.slot, incoming.pop())  # type: ignore[arg-type]

    tape.nodes.append((slots, recompute, (), 0))
    first = Value(y1.storage, x.n, x.width, slots[0])
    return tape.scale(tape.add(first, Value(y2.storage, x.n, x.width, slots[1])))


def _reversible_forward(tape: Tape, x: Value, blocks: list[ReversibleBlock]) -> tuple[Value, Value]:
    first = len(tape.nodes)
    x1 = x2 = Value(x.storage, x.n, x.width, None)
    for f, g, *_ in blocks:
        for function in (f, g):
            added = _without_graph(tape, function, x2)
            summed = tape.new(x.n, x.width)
            del added
            x1, x2 = x2, summed
    del tape.nodes[first:]
    return x1, x2


def _without_graph(tape: Tape, function: LayerFunction, x: Value) -> Value:
    """Run without autograd. Its peak is ignored: the backward pass recomputes the same and also holds gradients."""
    memory = tape.memory
    before, first = memory.peaks(), len(tape.nodes)
    out = function(x)
    del tape.nodes[first:]
    tape.casts.clear()
    memory.set_peaks(before)
    return Value(out.storage, out.n, out.width, None)


def _reversible_backward(
    tape: Tape,
    branches: tuple[LayerFunction, LayerFunction],
    count: int,
    groups: int,
    x: Value,
    incoming: list[Storage | None],
) -> None:
    memory = tape.memory
    before, head = memory.peaks(), memory.gradients
    seen = []
    for branch in reversed(branches):
        memory.restart()
        earlier = memory.gradients - head
        _undo(tape, branch, x, incoming)
        seen.append((memory.peaks(), earlier))
    layer_gradients = memory.gradients - head
    for ((peak, gradients, activation_gradients), without, accumulating), earlier in seen:
        more = groups * layer_gradients - earlier if groups < count else (groups - 1) * layer_gradients
        memory.set_peaks(
            before,
            ((peak, gradients, activation_gradients), without, accumulating),
            ((peak + more, gradients + more, activation_gradients), without, accumulating),
        )
        before = memory.peaks()
    tape.placeholders.append(Storage(memory, (groups - 1) * layer_gradients))
    memory.gradients += (groups - 1) * layer_gradients
    memory.set_peaks(before)


def _undo(tape: Tape, branch: LayerFunction, x: Value, incoming: list[Storage | None]) -> None:
    """Recompute one branch, backpropagate through it, and recover its other input; updates `incoming` in place."""
    mark = len(tape.nodes)
    inside = Value(x.storage, x.n, x.width, Slot())
    added = branch(inside)
    assert added.slot is not None
    added.slot.gradient = incoming[0]
    tape.casts.clear()
    tape.backward(mark)
    recovered, summed = tape.new(x.n, x.width), ActivationGradient(tape.memory, x.n * x.width)
    incoming[:] = [summed, incoming[0]]
    del recovered
