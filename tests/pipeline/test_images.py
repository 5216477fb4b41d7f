"""TextToImage from prompt to ranked images, on a tiny bundle with real parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.cores import cores
from tests.support.pipelines import PARAMS, PROMPT, last, pipe_of, pixels
from tests.support.tiny import TINY_DALLE
from ttt import SamplingParams, TextToImage
from ttt.bundle import Bundle
from ttt.errors import BundleError, InvalidInput
from ttt.rerank import ClipScorer
from ttt.sampling.decode import pick, uniforms

N = TINY_DALLE.image_seq_len


@torch.inference_mode()
def sample_with_plain_forward(pipe: TextToImage, prompt: str, params: SamplingParams) -> torch.Tensor:
    """The oracle: codes [candidates, n] from the model's plain forward, run again for every code."""
    config = pipe.dalle.config
    text = pipe.text_tokens([prompt]).expand(params.candidates, -1)
    random = uniforms(params.seed, range(params.candidates), config.image_seq_len)
    codes = torch.zeros(params.candidates, config.image_seq_len, dtype=torch.long)
    for m in range(config.image_seq_len):
        logits = pipe.dalle(text, codes[:, :m])[:, -1, config.text_vocab :]
        codes[:, m] = pick(logits, random[:, m], params)
    return codes


def test_images_are_those_of_the_plain_forward(pipe: TextToImage):
    codes = sample_with_plain_forward(pipe, PROMPT, PARAMS)
    assert len(codes.unique(dim=0)) == PARAMS.candidates, "the candidates should differ"
    expected = pipe.decode(codes).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    done = last(pipe.stream(PROMPT, PARAMS))
    assert abs(pixels(done.ranking).astype(int) - expected).max() <= 1


def test_the_best_come_first_with_true_scores(pipe: TextToImage):
    done = last(pipe.stream(PROMPT, PARAMS))
    assert done.stage == "done"
    assert done.fraction == 1.0
    assert len(done.ranking) == 11
    assert done.images == done.ranking[:3]
    assert [r.score for r in done.ranking] == sorted((r.score for r in done.ranking), reverse=True)
    assert {r.seed for r in done.ranking} == {4}
    images = torch.stack([torch.from_numpy(np.array(r.image)).permute(2, 0, 1) / 255 for r in done.ranking])
    assert isinstance(pipe.scorer, ClipScorer)
    torch.testing.assert_close(
        pipe.scorer.scores(images, PROMPT), torch.tensor([r.score for r in done.ranking]), atol=1e-3, rtol=0
    )
    best = pipe(PROMPT, PARAMS)
    assert [(r.candidate, r.score) for r in best] == [(r.candidate, r.score) for r in done.images]


def test_equal_scores_are_ordered_by_candidate(tmp_path: Path):
    class Same:
        def scores(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            return torch.zeros(len(images))

    done = last(pipe_of(tmp_path, Same()).stream(PROMPT, PARAMS))
    assert [r.candidate for r in done.ranking] == list(range(11))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 10, 11, 500])
def test_the_same_seed_gives_the_same_images_in_any_chunks(pipe: TextToImage, chunk: int):
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    assert (pixels(last(pipe.stream(PROMPT, PARAMS, chunk=chunk)).ranking) == whole).all()


def test_the_same_seed_gives_the_same_images_on_several_cores(pipe: TextToImage):
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    with cores(2):
        assert (pixels(last(pipe.stream(PROMPT, PARAMS)).ranking) == whole).all()


def test_more_candidates_do_not_change_the_first_ones(pipe: TextToImage):
    few = SamplingParams(candidates=4, keep=1, top_k=8, top_p=0.9, seed=4)
    assert (
        pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)[:4] == pixels(last(pipe.stream(PROMPT, few)).ranking)
    ).all()


def test_seeds_and_prompts_matter_and_seed_zero_is_valid(pipe: TextToImage):
    def generated(prompt: str, seed: int) -> np.ndarray:
        return pixels(last(pipe.stream(prompt, SamplingParams(candidates=4, keep=1, seed=seed))).ranking)

    zero = generated(PROMPT, 0)
    assert (generated(PROMPT, 0) == zero).all()
    assert (generated(PROMPT, 1) != zero).any()
    assert (generated("blue star on white background", 0) != zero).any()


@pytest.mark.parametrize("prompt", ["", " \n ", "x" * 10_000, 7, None])
def test_bad_prompts_are_refused_at_once(pipe: TextToImage, prompt: object):
    with pytest.raises(InvalidInput):
        pipe.stream(prompt)  # type: ignore[arg-type]  # before the first next()


@pytest.mark.parametrize("params", [{"candidates": 3}, 3, "8", SamplingParams, {}, 0])
def test_params_of_another_type_are_refused_at_once(pipe: TextToImage, params: object):
    with pytest.raises(InvalidInput, match="params must be SamplingParams"):
        pipe.stream(PROMPT, params)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [-3, 0, "3", 2.5, True, [3]])
def test_a_chunk_that_is_not_a_number_is_refused_at_once(pipe: TextToImage, bundle: Bundle, chunk: object):
    makers = (
        lambda: pipe.stream(PROMPT, PARAMS, chunk=chunk),  # type: ignore[arg-type]
        lambda: TextToImage.from_pretrained("no such thing", chunk=chunk),  # type: ignore[arg-type]
        lambda: TextToImage.from_bundle(bundle, chunk=chunk),  # type: ignore[arg-type]
        lambda: TextToImage(
            dalle=pipe.dalle, vqgan=pipe.vqgan, tokenizer=pipe.tokenizer, scorer=pipe.scorer, device="cpu",
            chunk=chunk,  # type: ignore[arg-type]
        ),
    )  # fmt: skip
    for make in makers:
        with pytest.raises(InvalidInput, match="chunk must be a whole number of at least 1"):
            make()


@pytest.mark.parametrize(
    "codes", [torch.full((1, N), 20), torch.full((1, N), -1), torch.zeros(1, N), torch.zeros(N, dtype=torch.long),
              torch.zeros(1, N, dtype=torch.bool), torch.zeros(1, N - 1, dtype=torch.long), [[0] * N]],
)  # fmt: skip
def test_invalid_codes_are_refused(pipe: TextToImage, codes: torch.Tensor):
    with pytest.raises(InvalidInput, match="codes"):
        pipe.decode(codes)


@pytest.mark.parametrize("prompt", ["красный круг", "一个红色的圆圈", "🔴", "\ud800 half", "x" * 2000])
def test_prompts_in_any_script_work(pipe: TextToImage, prompt: str):
    assert len(pipe(prompt, SamplingParams(candidates=2, keep=1))) == 1


def test_keep_all_and_one_candidate(pipe: TextToImage):
    assert len(pipe(PROMPT, SamplingParams(candidates=5, keep=5))) == 5
    assert len(pipe(PROMPT, SamplingParams(candidates=1, keep=1))) == 1


def test_public_attributes(pipe: TextToImage):
    assert pipe.name == "tiny"
    tokens = pipe.text_tokens([PROMPT, "red"])
    assert tokens.shape == (2, TINY_DALLE.text_seq_len)
    images = pipe.decode(torch.zeros(2, N, dtype=torch.long))
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(pipe.decode(torch.zeros(2, 4, 4, dtype=torch.uint8)), images)
    assert images.min() >= 0
    assert images.max() <= 1
    assert pipe.dalle(tokens, torch.zeros(2, 3, dtype=torch.long)).shape == (
        2, TINY_DALLE.text_seq_len + 4, TINY_DALLE.total_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_16_bit_sampling_is_the_same_in_any_chunks(bundle: Bundle, dtype: str | torch.dtype):
    pipe = TextToImage.from_pretrained(bundle.root, device="cpu", dtype=dtype)
    assert pipe.dtype in (torch.bfloat16, torch.float16)
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    assert (pixels(last(pipe.stream(PROMPT, PARAMS, chunk=5)).ranking) == whole).all()


def test_images_decoded_in_16_bits_are_those_of_float32_within_rounding(bundle: Bundle):
    codes = torch.randint(0, TINY_DALLE.num_image_tokens, (8, N), generator=torch.Generator().manual_seed(0))
    exact, rounded, half = (
        TextToImage.from_pretrained(bundle.root, device="cpu", dtype=dtype).decode(codes)
        for dtype in ("float32", "bfloat16", "float16")
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 1 / 255
    assert torch.equal(half, exact), "float16 could overflow in a VQGAN"


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "", "meta", 3])
def test_a_wrong_device_is_refused_with_those_allowed(bundle: Bundle, device: object):
    with pytest.raises(InvalidInput, match="allowed: 'auto', 'cpu'"):
        TextToImage.from_pretrained(bundle.root, device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float8", "int4", "", torch.uint8, ["a"], None, {}])
def test_a_wrong_dtype_is_refused_with_those_allowed(bundle: Bundle, dtype: object):
    with pytest.raises(InvalidInput, match="'auto', 'float32', 'bfloat16', 'float16', 'int8'"):
        TextToImage.from_pretrained(bundle.root, dtype=dtype)  # type: ignore[arg-type]


def test_a_wrong_model_is_refused(tmp_path: Path):
    with pytest.raises(BundleError, match="neither 'demo'"):
        TextToImage.from_pretrained("no such thing at all")
    with pytest.raises(BundleError, match=r"config\.json"):
        TextToImage.from_pretrained(tmp_path)
