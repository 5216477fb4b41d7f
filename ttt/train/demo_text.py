"""The demo's tokenizer: byte-level BPE over captions of the world. Independent of every model."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ttt.data.shapes import COLORS, SHAPES
from ttt.data.world import scenes as world
from ttt.data.world.captions import caption
from ttt.data.world.nouns import NOUNS, plural_of
from ttt.errors import InvalidInput

PAD, END = "[PAD]", "[EOS]"
REPEATS = 40
"""Every word of the world is repeated so often, so that none is split because it was rare by chance."""


def train_tokenizer(path: Path, *, vocab_size: int, captions: int = 20_000, seed: int = 0) -> None:
    """Write `tokenizer.json`: id 0 is padding, the highest id ends a text for CLIP, every byte has a token.

    So each word of the captions is one token, and any other text in any script can still be read.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_captions(captions, seed), trainer)
    if tokenizer.get_vocab_size() != vocab_size - 1:
        raise InvalidInput(
            f"the captions give only {tokenizer.get_vocab_size() + 1} tokens, not {vocab_size}; ask for fewer"
        )
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(path))


def _captions(count: int, seed: int) -> list[str]:
    texts = [caption(scene, rng) for scene, rng in islice(world.stream(seed, held_out=None), count)]
    words = [*COLORS, *SHAPES, *(plural_of(name) for name in SHAPES)]
    words += [name for noun in NOUNS.values() for name in (noun.name, noun.plural, *noun.others)]
    return texts + random.Random(seed).sample(words * REPEATS, REPEATS * len(words))
