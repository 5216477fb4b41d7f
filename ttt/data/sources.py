"""Names of training data -> streams: captioned scenes, or shards of codes wherever they are. Knows no training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ttt.bundle.spec import Bundle
from ttt.config import DalleConfig
from ttt.errors import InvalidInput
from ttt.tokenizer import TextTokenizer
from ttt.types import BatchStream

if TYPE_CHECKING:
    from ttt.model.vqgan import Vqgan

SCENES = "scenes"


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
    """Training batches for a model of `config`, read by the tokenizer of `parts`.

    source: "scenes" (drawn on the fly, coded by the VQGAN of `parts`, or by `vqgan` where it is loaded already), or
    what `ttt.data.stream.CodeStream` reads: a folder or glob of Parquet shards, URLs, a Hub data set.
    held_out: scenes that training never shows.
    """
    tokenize = TextTokenizer.from_file(parts.tokenizer_file, config.text_seq_len, parts.pad_id)
    if source == SCENES:
        from ttt.bundle.weights import load_vqgan_from
        from ttt.data.scenes import SceneStream

        return SceneStream(vqgan or load_vqgan_from(parts), tokenize, batch_size, seed=seed, held_out=held_out)
    if held_out:
        raise InvalidInput("only scenes have a held-out part of their own; name other shards to evaluate on")
    from ttt.data.manifest import codebook_of
    from ttt.data.stream import CodeStream

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
