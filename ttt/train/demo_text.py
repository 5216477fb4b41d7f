"""The demo's tokenizer: byte-level BPE over captions of scenes. Knows no model."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ttt.data import shapes
from ttt.errors import InvalidInput

PAD, END = "[PAD]", "[EOS]"


def train_tokenizer(path: Path, *, vocab_size: int, captions: int = 20_000, seed: int = 0) -> None:
    """Write `tokenizer.json`: id 0 is padding, the highest id ends a text for CLIP, every byte has a token.

    So each word of the captions is one token, and any other text in any script is still readable.
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
    texts = [text for _, text in islice(shapes.stream(seed, held_out=None), count)]
    # Every colour, shape and background often, so that none is cut into pieces by chance.
    words = [*shapes.COLORS, *shapes.BACKGROUNDS, *shapes.SHAPES, *(f"{name}s" for name in shapes.SHAPES)]
    return texts + random.Random(seed).sample(words * 20, 20 * len(words))
