"""Prompts in any script become tokens; anything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny import write_tokenizer
from ttt.errors import BundleError, InvalidInput
from ttt.tokenizer import MAX_PROMPT_CHARACTERS, TextTokenizer, check_prompt


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.from_file(write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t.json"), 6, pad_id=0)


def test_the_tokenizer_of_the_tests_is_valid(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path / "t.json")))
    assert tokenizer.encode("a red circle", add_special_tokens=False).ids == [2, 3, 6]


def test_prompts_are_padded_and_cut(tokenizer: TextTokenizer):
    tokens = tokenizer(["a red circle", "a red circle above a blue square on white"])
    assert tokens.tolist() == [[2, 3, 6, 0, 0, 0], [2, 3, 6, 8, 2, 5]]


def test_padding_uses_the_models_own_id(tmp_path: Path):
    published = TextTokenizer.from_file(write_tokenizer(tmp_path / "t.json"), 4, pad_id=1)
    assert published(["red"]).tolist() == [[3, 1, 1, 1]]


def test_settings_inside_the_file_do_not_matter(tmp_path: Path):
    from tokenizers import Tokenizer

    path = write_tokenizer(tmp_path / "t.json")
    known = Tokenizer.from_file(str(path))
    known.enable_padding(length=20, pad_id=9)
    known.enable_truncation(1)
    known.save(str(path))
    assert TextTokenizer.from_file(path, 4, pad_id=0)(["a red star"]).tolist() == [[2, 3, 13, 0]]


@settings(max_examples=200)
@given(st.text(alphabet=st.characters(), max_size=40))
def test_any_text_becomes_tokens(tokenizer: TextTokenizer, prompt: str):
    tokens = tokenizer([prompt])
    assert tokens.shape == (1, 6)
    assert ((tokens >= 0) & (tokens < 15)).all()


@pytest.mark.parametrize(
    "prompt",
    ["красный круг", "一个红色的圆圈", "दायरा लाल", "دائرة حمراء", "🔴 over 🟦", "\ud800 half", "e\u0301\u200d"],
)
def test_prompts_in_any_script_pass(tokenizer: TextTokenizer, prompt: str):
    assert tokenizer([check_prompt(prompt)]).shape == (1, 6)


def test_one_text_instead_of_a_list_is_refused(tokenizer: TextTokenizer):
    with pytest.raises(InvalidInput, match="list"):
        tokenizer("a red circle")


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "\u200b\u200b", "\x00"])
def test_an_empty_prompt_is_refused_with_an_example(prompt: str):
    with pytest.raises(InvalidInput, match="empty.*1 to 2,000 characters.*red circle"):
        check_prompt(prompt)


def test_a_long_prompt_is_refused_with_the_limit():
    assert check_prompt("x" * MAX_PROMPT_CHARACTERS)
    with pytest.raises(InvalidInput, match="10,000 characters; at most 2,000"):
        check_prompt("x" * 10_000)


@pytest.mark.parametrize("prompt", [None, 3, b"bytes", ["list"]])
def test_what_is_not_a_text_is_refused(prompt: object):
    with pytest.raises(InvalidInput, match="must be a text"):
        check_prompt(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}', "\x00"])
def test_a_broken_file_is_named(tmp_path: Path, content: str):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(BundleError, match="broken.json"):
        TextTokenizer.from_file(path, 4, 0)
    with pytest.raises(BundleError, match="missing.json"):
        TextTokenizer.from_file(tmp_path / "missing.json", 4, 0)
