"""Which models the server offers and their state; loads them in the background. Knows no gradio and no torch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from ttt.bundle import PUBLISHED
from ttt.errors import InvalidInput, TTTError

if TYPE_CHECKING:
    from ttt.sampling.params import SamplingParams
    from ttt.types import Progress

log = logging.getLogger(__name__)


class Painter(Protocol):
    """What a tab needs of a model; `ttt.pipeline.TextToImage` is one, `ttt.ui.generate.fake.FakePainter` another."""

    def stream(
        self, prompt: str, params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[Progress]: ...


@dataclass(frozen=True)
class Source:
    """A model that can be chosen."""

    key: str
    """Its name in the form, in the address and in the API."""
    label: str
    target: str
    """What `TextToImage.from_pretrained` takes."""
    about: str = ""


def sources(bundles: Sequence[str] = ()) -> tuple[Source, ...]:
    """The demo, the published model, and the bundle folders the server was started with."""
    known = [
        Source("demo", "Demo (small, ships with the app)", "demo", "Knows coloured shapes and how they are placed."),
        Source("published", "Published model (from the Hub)", PUBLISHED, "1.1 B-parameter compute, needs a download."),
    ]
    taken = {source.key for source in known}
    for bundle in bundles:
        name = Path(bundle).resolve().name or "bundle"
        key = next(k for k in (name, *(f"{name}-{i}" for i in range(2, 1000))) if k not in taken)
        taken.add(key)
        known.append(Source(key, f"{key} (bundle on this server)", str(bundle), "A bundle of this server's owner."))
    return tuple(known)


Status = Literal["idle", "loading", "ready", "failed"]


@dataclass(frozen=True)
class ModelState:
    status: Status
    reason: str = ""
    """Why it failed, in words for the user."""
    since: float = field(default_factory=time.monotonic)


class ModelShelf:
    """Loads models when they are first asked for, one at a time, off every request's path."""

    def __init__(self, offered: Sequence[Source], load: Callable[[str], Painter]) -> None:
        self.sources = tuple(offered)
        self._load = load
        self._states = {source.key: ModelState("idle") for source in offered}
        self._painters: dict[str, Painter] = {}
        self._callers: dict[str, list[tuple[Callable[[Painter], None], Callable[[str], None]]]] = {}
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    @property
    def keys(self) -> list[str]:
        return [source.key for source in self.sources]

    def source(self, key: object) -> Source:
        """The model of this name; InvalidInput that lists the names when there is none."""
        for source in self.sources:
            if source.key == key:
                return source
        shown = repr(key) if len(repr(key)) <= 60 else "that"
        raise InvalidInput(f"there is no model {shown}; this server has: {', '.join(self.keys)}")

    def state(self, key: str) -> ModelState:
        return self._states[self.source(key).key]

    def request(self, key: str) -> None:
        """Start loading unless it is loaded or under way; a failed one is tried again."""
        self.when_ready(key, lambda painter: None, lambda reason: None)

    def when_ready(self, key: str, ready: Callable[[Painter], None], failed: Callable[[str], None]) -> None:
        """Call `ready(painter)` as soon as the model is there (perhaps at once), or `failed(reason)`."""
        source = self.source(key)
        with self._lock:
            painter = self._painters.get(key)
            if painter is None:
                self._callers.setdefault(key, []).append((ready, failed))
                if self._states[key].status != "loading":
                    self._states[key] = ModelState("loading")
                    threading.Thread(target=self._fetch, args=(source,), name=f"ttt-load-{key}", daemon=True).start()
        if painter is not None:
            ready(painter)

    def _fetch(self, source: Source) -> None:
        started = time.monotonic()
        painter, reason = None, ""
        try:
            with self._one_at_a_time:
                painter = self._load(source.target)
        except TTTError as error:
            reason = str(error)
        except Exception as error:
            log.exception("loading %s failed", source.key)
            reason = f"{type(error).__name__}: {error}"
        with self._lock:
            callers = self._callers.pop(source.key, [])
            if painter is not None:
                self._painters[source.key] = painter
                self._states[source.key] = ModelState("ready")
            else:
                self._states[source.key] = ModelState("failed", reason)
        log.info("model %s: %s after %.1f s", source.key, reason or "ready", time.monotonic() - started)
        for ready, failed in callers:
            if painter is not None:
                ready(painter)
            else:
                failed(reason)


def load_real(target: str, dtype: str = "auto") -> Painter:
    """The real model; imported here because torch takes seconds, which the page must not wait for."""
    from ttt.pipeline import TextToImage

    return TextToImage.from_pretrained(target, dtype=dtype)
