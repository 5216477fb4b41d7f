"""Sizes, sharing, the loss, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.config import PAPER, DalleConfig
from ttt.errors import InvalidInput
from ttt.model.dalle import Dalle

CONFIG = DalleConfig(
    dim=16, depth=6, heads=2, dim_head=8, text_seq_len=5, image_fmap_size=4, num_text_tokens=20, num_image_tokens=12
)


@pytest.fixture(scope="module")
def dalle() -> Dalle:
    torch.manual_seed(0)
    return Dalle(CONFIG)


def batch(b: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(20, (b, 5), generator=g), torch.randint(12, (b, 16), generator=g)


def unique_parameters(config: DalleConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Dalle(config).parameters())


def test_the_papers_sizes() -> None:
    shared, alone = unique_parameters(PAPER), unique_parameters(replace(PAPER, share_layers=False))
    assert (shared, alone) == (125_894_244, 1_116_354_148)
    assert round(alone / shared, 1) == 8.9


def test_shared_weights_are_one_tensor_with_one_name(dalle: Dalle) -> None:
    layers = list(dalle.transformer.layers)
    assert [layer.kind for layer in layers] == ["row", "column", "row", "row", "row", "conv"]
    assert layers[0].attention is layers[4].attention is dalle.transformer.attentions[0]
    assert layers[0].feed_forward is layers[4].feed_forward is dalle.transformer.feed_forwards[0]
    assert layers[5].attention is dalle.transformer.attentions[4]
    assert layers[0].attention_scale is not layers[4].attention_scale
    tensors = dalle.state_dict()
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)


def test_a_copy_shares_among_itself(dalle: Dalle) -> None:
    twin = copy.deepcopy(dalle)
    assert twin.transformer.layers[0].attention is twin.transformer.attentions[0]
    assert twin.transformer.layers[0].attention is not dalle.transformer.attentions[0]


def test_loss_is_the_cross_entropy_of_the_logits(dalle: Dalle) -> None:
    text, codes = batch()
    logits, labels = dalle(text, codes), dalle.token_ids(text, codes)[:, 1:]
    text_loss = F.cross_entropy(logits[:, :5].flatten(0, 1), labels[:, :5].flatten())
    image_loss = F.cross_entropy(logits[:, 5:].flatten(0, 1), labels[:, 5:].flatten())
    torch.testing.assert_close(dalle.loss(text, codes), (text_loss + 7 * image_loss) / 8)


def test_text_predicts_text_and_codes_predict_codes(dalle: Dalle) -> None:
    logits = dalle(*batch())
    lowest = -torch.finfo(torch.float32).max
    assert logits.shape == (2, 21, 37)
    assert (logits[:, :5, 25:] == lowest).all()
    assert (logits[:, 5:, :25] == lowest).all()
    assert (logits[:, :5, :25] > lowest).all()
    assert (logits[:, 5:, 25:] > lowest).all()


def test_no_position_sees_what_comes_after(dalle: Dalle) -> None:
    text, codes = batch()
    whole = dalle(text, codes)
    for m in range(17):
        part = dalle(text, codes[:, :m])
        torch.testing.assert_close(part, whole[:, : part.shape[1]], atol=1e-5, rtol=0)


def test_padding_has_a_token_for_each_position(dalle: Dalle) -> None:
    assert dalle.token_ids(torch.tensor([[7, 0, 3, 0, 0]])).tolist() == [[0, 7, 21, 3, 23, 24]]


def test_what_a_cached_decoder_needs(dalle: Dalle) -> None:
    text, codes = batch()
    x = torch.cat(
        (
            dalle.embed_text(text),
            torch.nn.functional.embedding(codes + dalle.config.text_vocab, dalle.to_logits.weight),
        ),
        dim=1,
    )[:, :-1]
    assert x.shape == (2, CONFIG.seq_len, 16)
    last = dalle.transformer(x)[:, -1]
    torch.testing.assert_close(dalle.image_logits(last), dalle(text, codes)[:, -1, 25:])


TEXT, CODES = batch()


@pytest.mark.parametrize(
    ("text", "codes", "message"),
    [
        (TEXT + 20, CODES, r"text must be from 0 to 19, got 2\d to"),
        (TEXT - 20, CODES, r"text must be from 0 to 19, got -\d+ to"),
        (TEXT, CODES + 12, r"codes must be from 0 to 11"),
        (TEXT, CODES - 12, r"codes must be from 0 to 11"),
        (TEXT[:, :4], CODES, r"text must be \[b, 5\] tokens, got \[2, 4\]"),
        (TEXT[0], CODES, r"text must be a \[b, n\] tensor"),
        (TEXT.float(), CODES, r"whole numbers, got torch.float32"),
        (TEXT, CODES[:1], r"codes must be \[2, 0 to 16\], got \[1, 16\]"),
        (TEXT, torch.cat((CODES, CODES), 1), r"codes must be \[2, 0 to 16\], got \[2, 32\]"),
    ],
)
def test_bad_tokens_are_refused(dalle: Dalle, text: Tensor, codes: Tensor, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        dalle(text, codes)
    with pytest.raises(InvalidInput, match=message):
        dalle.loss(text, codes)


def test_the_loss_needs_whole_images(dalle: Dalle) -> None:
    with pytest.raises(InvalidInput, match="whole images of 16 codes, got 15"):
        dalle.loss(TEXT, CODES[:, :15])


def test_other_integers_and_an_empty_batch(dalle: Dalle) -> None:
    assert torch.equal(dalle(TEXT.to(torch.int16), CODES.to(torch.int32)), dalle(TEXT, CODES))
    assert dalle(TEXT[:0], CODES[:0]).shape == (0, 21, 37)
