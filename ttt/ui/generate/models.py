"""Registry of the models the server offers: loads them in the background. Independent of Gradio and of torch."""

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


class ImageGenerator(Protocol):
    """What the service needs of a model: `ttt.pipeline.TextToImage` or `ttt.ui.generate.fake.FakeGenerator`."""

    def stream(
        self, prompt: str, params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[Progress]: ...


@dataclass(frozen=True)
class ModelSource:
    """A model that can be chosen."""

    key: str
    """Its name in the form, in links and in the API."""
    label: str
    target: str
    """What `TextToImage.from_pretrained` takes."""
    about: str = ""


def sources(bundles: Sequence[str] = ()) -> tuple[ModelSource, ...]:
    """The demo, the published model, and the bundle folders the server was started with."""
    offered = [
        ModelSource(
            "demo", "Demo model: coloured shapes", "demo", "Generates only coloured shapes in simple arrangements."
        ),
        ModelSource("published", "2021 model: photos and art (from the Hub)", PUBLISHED, "Downloaded on first use."),
    ]
    taken = {source.key for source in offered}
    for bundle in bundles:
        name = Path(bundle).resolve().name or "bundle"
        key = next(k for k in (name, *(f"{name}-{i}" for i in range(2, 1000))) if k not in taken)
        taken.add(key)
        label = f"{key} (bundle on this server)"
        offered.append(ModelSource(key, label, str(bundle), "Added by this server's owner."))
    return tuple(offered)


LoadStatus = Literal["idle", "loading", "ready", "failed"]


@dataclass(frozen=True)
class ModelState:
    status: LoadStatus
    reason: str = ""
    """Why loading failed, for the user."""
    since: float = field(default_factory=time.monotonic)


class ModelRegistry:
    """Loads models when they are first requested, one at a time, in the background."""

    def __init__(self, offered: Sequence[ModelSource], load: Callable[[str], ImageGenerator]) -> None:
        self.sources = tuple(offered)
        self._load = load
        self._states = {source.key: ModelState("idle") for source in offered}
        self._generators: dict[str, ImageGenerator] = {}
        self._callbacks: dict[str, list[tuple[Callable[[ImageGenerator], None], Callable[[str], None]]]] = {}
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    @property
    def keys(self) -> list[str]:
        return [source.key for source in self.sources]

    def source(self, key: object) -> ModelSource:
        """The model of this name; InvalidInput lists the names if there is none."""
        for source in self.sources:
            if source.key == key:
                return source
        shown = repr(key) if len(repr(key)) <= 60 else "of that name"
        raise InvalidInput(f"there is no model {shown}; this server has: {', '.join(self.keys)}")

    def state(self, key: str) -> ModelState:
        return self._states[self.source(key).key]

    def request(self, key: str) -> None:
        """Start loading unless it is loaded or being loaded; retry if it failed."""
        self.when_ready(key, lambda generator: None, lambda reason: None)

    def when_ready(self, key: str, ready: Callable[[ImageGenerator], None], failed: Callable[[str], None]) -> None:
        """Call `ready(generator)` as soon as the model is loaded, which may be now, or `failed(reason)`."""
        source = self.source(key)
        with self._lock:
            generator = self._generators.get(key)
            if generator is None:
                self._callbacks.setdefault(key, []).append((ready, failed))
                if self._states[key].status != "loading":
                    self._states[key] = ModelState("loading")
                    threading.Thread(target=self._fetch, args=(source,), name=f"ttt-load-{key}", daemon=True).start()
        if generator is not None:
            ready(generator)

    def _fetch(self, source: ModelSource) -> None:
        started = time.monotonic()
        generator, reason = None, ""
        try:
            with self._one_at_a_time:
                generator = self._load(source.target)
        except TTTError as error:
            reason = str(error)
        except Exception as error:
            log.exception("loading the model %s failed", source.key)
            reason = f"{type(error).__name__}: {error}"
        with self._lock:
            callbacks = self._callbacks.pop(source.key, [])
            if generator is not None:
                self._generators[source.key] = generator
                self._states[source.key] = ModelState("ready")
            else:
                self._states[source.key] = ModelState("failed", reason)
        log.info("model %s: %s after %.1f s", source.key, reason or "ready", time.monotonic() - started)
        for ready, failed in callbacks:
            if generator is not None:
                ready(generator)
            else:
                failed(reason)


def load_pipeline(target: str, dtype: str = "auto") -> ImageGenerator:
    """The real model. Imported here because torch takes seconds to import, and the page must not wait for it."""
    from ttt.pipeline import TextToImage

    return TextToImage.from_pretrained(target, dtype=dtype)
