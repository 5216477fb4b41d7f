"""Streams training batches from shards of captions and codes: endless, shuffled and exactly resumable."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ttt.data.files import HttpClient, RetryPolicy
from ttt.data.filters import Filters
from ttt.data.rows import COUNT_LABELS, RowCheck, log
from ttt.data.shard_list import ShardSource, find_shards
from ttt.data.shuffle import INTERLEAVED_SHARDS, Prefetcher, ShuffleCursor, ShuffleReader, ShuffleWindow
from ttt.data.stream_state import StreamState
from ttt.errors import DataError, InvalidInput
from ttt.fields import check_whole_number
from ttt.types import Batch, BatchStream

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.bundle import Bundle
    from ttt.config import DalleConfig
    from ttt.model.vqgan import Vqgan

SCENES = "scenes"
"""Name of the data set that is drawn on the fly."""


class CodeStream:
    """A `ttt.types.BatchStream` over a Hub data set, a folder or pattern of shards, or their addresses.

        stream = CodeStream("laion/laion_100m_vqgan_f8", tokenize=tokenizer, batch_size=8,
                            image_seq_len=1024, num_image_tokens=8192, seed=peer_number)
        for batch in stream: ...

    At most a few windows of `shuffle_buffer` rows are in memory. Nothing is written to the disk, except that up to
    `INTERLEAVED_SHARDS` shards are spooled if their server does not support ranges. Every row comes once per epoch.
    `state_dict` is a few hundred bytes; resuming from it reads one window again. Only `shuffle_buffer` neighbouring
    rows are mixed: shards that are sorted (by label, for example) should be shuffled when they are made.
    """

    def __init__(
        self,
        source: ShardSource,
        *,
        tokenize: Callable[[Sequence[str]], Tensor],
        batch_size: int,
        image_seq_len: int,
        num_image_tokens: int,
        seed: int,
        shuffle_buffer: int = 8192,
        filters: Filters | None = None,
        token: str | None = None,
        revision: str | None = None,
        codebook: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Nothing is opened before the first batch.

        seed: different for every peer, so that each has an order of its own. token, revision: for a Hub data set.
        codebook: SHA-256 of the model's `vqgan.safetensors`, compared with the data set's `dataset.json` if it has one.
        """
        if type(seed) is not int:
            raise InvalidInput(f"seed must be a whole number, got {seed!r}")
        self.source, self.tokenize, self.seed = source, tokenize, seed
        self.batch_size = check_whole_number("batch_size", batch_size, 1)
        self.shuffle_buffer = check_whole_number("shuffle_buffer", shuffle_buffer, 1)
        self._warned: set[str] = set()
        self.check = RowCheck(image_seq_len, num_image_tokens, filters or Filters(), _warn_once(self._warned))
        self.token, self.codebook, self.retry = token, codebook, retry or RetryPolicy()
        self._state = StreamState(settings=self._settings(), revision=revision)
        self._prefetcher: Prefetcher | None = None
        self._window: ShuffleWindow | None = None
        self._offset = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises DataError if nothing can be read; calling again resumes at the same row."""
        import numpy as np
        import torch

        # Work on copies, so that an error leaves the stream at the end of the last batch.
        window, offset = self._window, self._offset
        captions: list[str] = []
        codes = []
        try:
            while len(captions) < self.batch_size:
                if window is None or offset == len(window):
                    window, offset = self._next_window(), (self._state.emitted if window is None else 0)
                    if offset > len(window):
                        raise DataError(f"{self.source!s:.200} has changed since the state was saved; start without it")
                end = min(offset + self.batch_size - len(captions), len(window))
                captions += window.captions[offset:end]
                codes.append(window.codes[offset:end])
                offset = end
        except BaseException:
            self.close()
            raise
        self._window, self._offset = window, offset
        return Batch(self.tokenize(captions), torch.from_numpy(np.concatenate(codes).astype(np.int64)))

    @property
    def counts(self) -> Counter[str]:
        """Numbers of rows read, kept and skipped, by the kinds of `ttt.data.rows.COUNT_LABELS`.

        They include the runs that were resumed, and end with the window that is being handed out.
        """
        counts = self._state.counts if self._window is None else self._window.counts
        return Counter({kind: counts[kind] for kind in COUNT_LABELS})

    @property
    def epoch(self) -> int:
        """How many times the whole data set has been handed out."""
        return (
            (self._state.cursor.epoch if self._state.cursor else 0)
            if self._window is None
            else self._window.start.epoch
        )

    def state_dict(self) -> dict[str, Any]:
        return self._current_state().to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InvalidInput for the state of another stream; the data set itself is compared at the next batch."""
        loaded = StreamState.from_dict(state)
        loaded.check_settings(self._settings())
        self.close()
        self._state = loaded

    def close(self) -> None:
        """Stop prefetching and close the connections; the next batch opens them again."""
        self._state = self._current_state()
        self._window, self._offset = None, 0
        if self._prefetcher is not None:
            self._finalizer()
            self._prefetcher = None

    def _current_state(self) -> StreamState:
        window = self._window
        if window is None:
            return self._state
        return StreamState(
            settings=self._settings(),
            shards=self._state.shards,
            revision=self._state.revision,
            cursor=window.start,
            emitted=self._offset,
            failures=window.failures,
            counts=window.counts_before,
        )

    def _settings(self) -> dict[str, Any]:
        """What the order of rows depends on, besides the shards."""
        return {
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "image_seq_len": self.check.image_seq_len,
            "num_image_tokens": self.check.num_image_tokens,
            "filters": self.check.filters.to_dict(),
        }

    def _next_window(self) -> ShuffleWindow:
        # A local variable, because another thread may close the stream meanwhile.
        prefetcher = self._prefetcher
        if prefetcher is None:
            prefetcher = self._open()
            self._finalizer = weakref.finalize(self, prefetcher.close)
            self._prefetcher = prefetcher
        return prefetcher.next_window()

    def _open(self) -> Prefetcher:
        state, http = self._state, HttpClient(self.retry)
        warn = _warn_once(self._warned)
        http.on_retry = lambda reason: warn("retries", reason)
        try:
            shards = find_shards(self.source, http, self.token, state.revision)
            if shards.manifest is not None:
                sizes = (self.check.image_seq_len, self.check.num_image_tokens)
                shards.manifest.check(f"{self.source!s:.200}", *sizes, self.codebook)
            state.check_shards(shards, f"{self.source!s:.200}")
        except BaseException:
            http.close()
            raise
        state.shards, state.revision = shards.fingerprint, shards.revision
        reader = ShuffleReader(
            shards=shards,
            http=http,
            check=self.check,
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer,
            cursor=state.cursor or ShuffleCursor.start(0, min(INTERLEAVED_SHARDS, len(shards.locations))),
            counts=Counter(state.counts),
            known_failures=dict(state.failures),
        )

        def count_retry(reason: str) -> None:
            reader.counts["retries"] += 1
            warn("retries", reason)

        http.on_retry = count_retry
        return Prefetcher(reader)


def _warn_once(warned: set[str]) -> Callable[[str, str], None]:
    """A function that logs the first message of each kind; the others are only counted."""

    def warn(kind: str, message: str) -> None:
        if kind not in warned:
            warned.add(kind)
            log.warning("%s (further ones of this kind are only counted)", message)

    return warn


def open_stream(
    source: str,
    parts: Bundle,
    config: DalleConfig,
    *,
    batch_size: int,
    seed: int,
    held_out: bool = False,
    token: str | None = None,
    vqgan: Vqgan | None = None,
) -> BatchStream:
    """Training batches for a model of `config`, with the tokenizer of `parts`.

    source: "scenes" (drawn on the fly and encoded by the VQGAN of `parts`, or by `vqgan` if it is already loaded), or
    what `CodeStream` reads: a folder or pattern of Parquet shards, URLs, a Hub data set.
    held_out: scenes that training never shows.
    """
    from ttt.tokenizer import TextTokenizer

    tokenize = TextTokenizer.from_file(parts.tokenizer_file, config.text_seq_len, parts.pad_id)
    if source == SCENES:
        from ttt.bundle.weights import load_vqgan_from
        from ttt.data.scenes import SceneStream

        return SceneStream(vqgan or load_vqgan_from(parts), tokenize, batch_size, seed=seed, held_out=held_out)
    if held_out:
        raise InvalidInput("only scenes have a held-out part of their own; give other shards to evaluate on")
    from ttt.data.manifest import codebook_of

    return CodeStream(
        source,
        tokenize=tokenize,
        batch_size=batch_size,
        image_seq_len=config.image_seq_len,
        num_image_tokens=config.num_image_tokens,
        seed=seed,
        token=token,
        codebook=codebook_of(parts.vqgan_file),
    )
