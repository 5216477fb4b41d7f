"""Checks prompts and turns them into text tokens [b, text_seq_len]. Independent of any model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.errors import BundleError, InvalidInput
from ttt.text import first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

MAX_PROMPT_CHARACTERS = 2000


class TextTokenizer:
    """No special tokens are added; prompts are cut at `text_seq_len` tokens and padded with `pad_id`."""

    def __init__(self, tokenizer: Tokenizer, text_seq_len: int, pad_id: int) -> None:
        self.tokenizer, self.text_seq_len, self.pad_id = tokenizer, text_seq_len, pad_id
        # The file may have settings of its own; we cut and pad ourselves.
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], text_seq_len: int, pad_id: int) -> TextTokenizer:
        return cls(read_tokenizer(path), text_seq_len, pad_id)

    def ids(self, prompt: str) -> list[int]:
        """All tokens of a prompt, neither cut nor padded."""
        return list(self.tokenizer.encode(clean(prompt), add_special_tokens=False).ids)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """-> int64 [b, text_seq_len]."""
        import torch  # not at the top: a page checks prompts without torch

        if isinstance(prompts, str):
            raise InvalidInput("prompts must be a list of texts, got a single text; write [prompt]")
        n = self.text_seq_len
        rows = [self.ids(prompt)[:n] for prompt in prompts]
        return torch.tensor([row + [self.pad_id] * (n - len(row)) for row in rows], dtype=torch.long).view(-1, n)


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a `tokenizer.json`; BundleError if that fails."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise BundleError(
            f"{path} is not a readable tokenizer ({first_line(error)}); download or convert the model again"
        ) from None


def clean(prompt: str) -> str:
    """The prompt with lone surrogates replaced, which cannot be encoded."""
    if not isinstance(prompt, str):
        raise InvalidInput(f"a prompt must be a text, got {type(prompt).__name__}")
    return prompt.encode("utf-8", "replace").decode("utf-8")


def check_prompt(prompt: str) -> str:
    """The prompt without surrounding white space; InvalidInput if it is empty or too long."""
    text = clean(prompt).strip()
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise InvalidInput(
            f"the prompt is empty; describe an image in 1 to {MAX_PROMPT_CHARACTERS:,} characters, "
            'for example "a red circle above a blue square"'
        )
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidInput(f"the prompt has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are allowed")
    return text
