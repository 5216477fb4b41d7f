"""TextToImage from prompt to ranked pictures, on a tiny bundle with all its real parts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny import TINY_DALLE, tiny_dalle, tiny_vqgan, write_tiny_bundle, write_tokenizer
from ttt import SamplingParams, TextToImage
from ttt.errors import BundleError, Cancelled, InvalidInput, TTTError
from ttt.rerank import ClipScorer, Scorer
from ttt.sampling import paint as paint_module
from ttt.sampling.decode import pick, uniforms
from ttt.tokenizer import TextTokenizer
from ttt.types import Progress, RankedImage

PROMPT = "a red circle above a blue square"
PARAMS = SamplingParams(candidates=11, keep=3, top_k=8, top_p=0.9, seed=4)
FMAP, N = TINY_DALLE.image_fmap_size, TINY_DALLE.image_seq_len


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("pipeline") / "tiny").root


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> TextToImage:
    return TextToImage.from_pretrained(bundle, device="cpu")


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    """Threads inside operations this small only wait for one another, for long where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Brightness:
    """A scorer whose scores can be seen."""

    def scores(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))


def pipe_of(tmp_path: Path, scorer: Scorer | Future[Scorer], **more: object) -> TextToImage:
    tokenizer = TextTokenizer.from_file(write_tokenizer(tmp_path / "words.json"), TINY_DALLE.text_seq_len, 0)
    return TextToImage(
        dalle=tiny_dalle(), vqgan=tiny_vqgan(), tokenizer=tokenizer, scorer=scorer, device="cpu", **more  # type: ignore[arg-type]
    )  # fmt: skip


def pixels(ranking: tuple[RankedImage, ...] | list[RankedImage]) -> np.ndarray:
    """All pictures by candidate [candidates, h, w, 3]."""
    return np.stack([np.asarray(r.image) for r in sorted(ranking, key=lambda r: r.candidate)])


def last(stream: Iterator[Progress]) -> Progress:
    return list(stream)[-1]


@torch.inference_mode()
def painted_plainly(pipe: TextToImage, prompt: str, params: SamplingParams) -> torch.Tensor:
    """The oracle: codes [candidates, n] from the model's plain forward, which sees all codes so far again."""
    config = pipe.dalle.config
    text = pipe.text_tokens([prompt]).expand(params.candidates, -1)
    random = uniforms(params.seed, range(params.candidates), config.image_seq_len)
    codes = torch.zeros(params.candidates, config.image_seq_len, dtype=torch.long)
    for m in range(config.image_seq_len):
        logits = pipe.dalle(text, codes[:, :m])[:, -1, config.text_vocab :]
        codes[:, m] = pick(logits, random[:, m], params)
    return codes


def test_pictures_are_those_of_the_plain_forward(pipe: TextToImage):
    codes = painted_plainly(pipe, PROMPT, PARAMS)
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
def test_the_same_seed_paints_the_same_in_any_chunks(pipe: TextToImage, chunk: int):
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    assert (pixels(last(pipe.stream(PROMPT, PARAMS, chunk=chunk)).ranking) == whole).all()


def test_the_same_seed_paints_the_same_on_several_cores(pipe: TextToImage):
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    torch.set_num_threads(2)
    assert (pixels(last(pipe.stream(PROMPT, PARAMS)).ranking) == whole).all()


def test_more_candidates_leave_the_first_ones_as_they_were(pipe: TextToImage):
    few = SamplingParams(candidates=4, keep=1, top_k=8, top_p=0.9, seed=4)
    assert (
        pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)[:4] == pixels(last(pipe.stream(PROMPT, few)).ranking)
    ).all()


def test_seeds_and_prompts_matter_and_seed_zero_is_one(pipe: TextToImage):
    def painted(prompt: str, seed: int) -> np.ndarray:
        return pixels(last(pipe.stream(prompt, SamplingParams(candidates=4, keep=1, seed=seed))).ranking)

    zero = painted(PROMPT, 0)
    assert (painted(PROMPT, 0) == zero).all()
    assert (painted(PROMPT, 1) != zero).any()
    assert (painted("blue star on white background", 0) != zero).any()


@pytest.mark.parametrize("chunk", [None, 3])
def test_stages_come_in_order_with_a_sheet_for_every_row(pipe: TextToImage, chunk: int | None, monkeypatch):
    monkeypatch.setattr("ttt.request.PREVIEW_SHARE", float("inf"))  # show every preview, whatever it costs
    seen = list(pipe.stream(PROMPT, PARAMS, chunk=chunk))
    stages = list(dict.fromkeys(p.stage for p in seen))
    assert stages == ["reading", "painting", "decoding", "ranking", "done"]
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert seen[0].fraction == 0
    assert all(p.fraction < 1 for p in seen[:-1])
    assert all(not p.images and not p.ranking for p in seen[:-1])
    sheets = [p.sheet for p in seen if p.sheet is not None]
    assert len({sheet.tobytes() for sheet in sheets}) >= 3
    assert {sheet.size for sheet in sheets} == {sheets[0].size}
    assert seen[-1].sheet is not None
    assert any(p.stage == "painting" and p.sheet is not None for p in seen)


def test_nothing_depends_on_who_looks(pipe: TextToImage, monkeypatch):
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    monkeypatch.setattr("ttt.request.PREVIEW_SHARE", 1e-9)
    assert (pixels(last(pipe.stream(PROMPT, PARAMS)).ranking) == whole).all()


def test_running_out_of_memory_goes_on_in_smaller_chunks(pipe: TextToImage, monkeypatch):
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    real, tried = paint_module.decode_one_code, []

    def hungry(weights, cache, codes, position):
        if cache.b > 4:
            tried.append(cache.b)
            if position == 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return real(weights, cache, codes, position)

    monkeypatch.setattr(paint_module, "decode_one_code", hungry)
    seen = list(pipe.stream(PROMPT, PARAMS, chunk=11))
    assert tried, "the first chunk should have been large"
    assert (pixels(seen[-1].ranking) == whole).all()
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen), "painting again must not move the bar back"


def test_without_memory_for_one_candidate_the_error_says_so(pipe: TextToImage, monkeypatch):
    def never(*args: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(paint_module, "decode_one_code", never)
    with pytest.raises(TTTError, match="not enough memory for even one candidate"):
        pipe(PROMPT, PARAMS)
    monkeypatch.undo()
    assert len(pipe(PROMPT, PARAMS)) == 3, "the next request works"


def test_chunks_follow_from_the_memory_there_is(pipe: TextToImage, monkeypatch):
    pieces: list[int] = []
    real = paint_module.Cache

    def counted(config, prompt, b, *rest):
        pieces.append(b)
        return real(config, prompt, b, *rest)

    monkeypatch.setattr(paint_module, "Cache", counted)
    one = paint_module.memory_per_candidate(TINY_DALLE, torch.float32)
    monkeypatch.setattr("ttt.request.budget", lambda device: 4 * one)
    pipe(PROMPT, PARAMS)
    assert max(pieces) == 4
    assert len(pieces) == 3


@pytest.mark.parametrize("stage", ["painting", "decoding", "ranking"])
def test_cancel_stops_and_the_next_request_works(pipe: TextToImage, stage: str):
    cancel = threading.Event()
    threads = threading.active_count()
    at_stage = (cancel.set() for progress in pipe.stream(PROMPT, PARAMS, cancel) if progress.stage == stage)
    with pytest.raises(Cancelled):
        list(at_stage)
    assert threading.active_count() <= threads
    with pytest.raises(Cancelled):
        last(pipe.stream(PROMPT, PARAMS, cancel))
    assert len(pipe(PROMPT, PARAMS)) == 3


def test_cancel_from_another_thread_stops_between_two_codes(pipe: TextToImage, monkeypatch):
    real, cancel, codes = paint_module.decode_one_code, threading.Event(), []

    def counted(weights, cache, before, position):
        codes.append(position)
        if len(codes) == 3:
            cancel.set()
        return real(weights, cache, before, position)

    monkeypatch.setattr(paint_module, "decode_one_code", counted)
    with pytest.raises(Cancelled):
        last(pipe.stream(PROMPT, PARAMS, cancel, chunk=3))
    assert len(codes) == 3


def test_closing_the_stream_stops_the_work(pipe: TextToImage):
    threads = threading.active_count()
    stream = pipe.stream(PROMPT, SamplingParams(candidates=64))
    assert next(stream).stage == "reading"
    assert next(stream).stage == "painting"
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= threads


def test_two_streams_at_once_do_not_mix(pipe: TextToImage):
    prompts = (PROMPT, "blue star on white background")
    alone = [pixels(last(pipe.stream(p, PARAMS)).ranking) for p in prompts]
    together = [pipe.stream(p, PARAMS) for p in prompts]
    seen: list[list[Progress]] = [[], []]
    for first, second in zip(*together, strict=False):
        seen[0].append(first)
        seen[1].append(second)
    for i, stream in enumerate(together):
        seen[i].extend(stream)
    threaded: list[Progress | None] = [None, None]

    def run(i: int) -> None:
        threaded[i] = last(pipe.stream(prompts[i], PARAMS))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        ends = [p for p in seen[i] if p.stage == "done"] or [last(pipe.stream(prompts[i], PARAMS))]
        assert (pixels(ends[0].ranking) == alone[i]).all()
        result = threaded[i]
        assert result is not None
        assert (pixels(result.ranking) == alone[i]).all()


def test_inference_mode_does_not_leak_into_the_callers_code(pipe: TextToImage):
    for _ in pipe.stream(PROMPT, PARAMS):
        assert not torch.is_inference_mode_enabled()
        assert torch.ones(1, requires_grad=True).mul(2).requires_grad


@pytest.mark.parametrize("prompt", ["", " \n ", "x" * 10_000, 7, None])
def test_bad_prompts_are_refused_at_once(pipe: TextToImage, prompt: object):
    with pytest.raises(InvalidInput):
        pipe.stream(prompt)  # type: ignore[arg-type]  # before the first next()


@pytest.mark.parametrize("prompt", ["красный круг", "一个红色的圆圈", "🔴", "\ud800 half", "x" * 2000])
def test_prompts_in_any_script_are_painted(pipe: TextToImage, prompt: str):
    assert len(pipe(prompt, SamplingParams(candidates=2, keep=1))) == 1


def test_keep_all_and_one_candidate(pipe: TextToImage):
    assert len(pipe(PROMPT, SamplingParams(candidates=5, keep=5))) == 5
    assert len(pipe(PROMPT, SamplingParams(candidates=1, keep=1))) == 1


def test_parts_are_within_reach(pipe: TextToImage):
    assert pipe.name == "tiny"
    tokens = pipe.text_tokens([PROMPT, "red"])
    assert tokens.shape == (2, TINY_DALLE.text_seq_len)
    images = pipe.decode(torch.zeros(2, N, dtype=torch.long))
    assert images.shape == (2, 3, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    assert pipe.dalle(tokens, torch.zeros(2, 3, dtype=torch.long)).shape == (
        2, TINY_DALLE.text_seq_len + 4, TINY_DALLE.total_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_16_bit_painting_runs_and_is_the_same_in_any_chunks(bundle: Path, dtype: str | torch.dtype):
    pipe = TextToImage.from_pretrained(bundle, device="cpu", dtype=dtype)
    assert pipe.dtype in (torch.bfloat16, torch.float16)
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    assert (pixels(last(pipe.stream(PROMPT, PARAMS, chunk=5)).ranking) == whole).all()


def test_pictures_of_16_bit_painting_are_those_of_float32_within_rounding(bundle: Path):
    codes = torch.randint(0, TINY_DALLE.num_image_tokens, (8, N), generator=torch.Generator().manual_seed(0))
    exact, rounded, half = (
        TextToImage.from_pretrained(bundle, device="cpu", dtype=dtype).decode(codes)
        for dtype in ("float32", "bfloat16", "float16")
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 1 / 255
    assert torch.equal(half, exact), "float16 could overflow in a VQGAN"


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "", "meta", 3])
def test_a_wrong_device_is_refused_with_those_allowed(bundle: Path, device: object):
    with pytest.raises(InvalidInput, match="allowed: 'auto', 'cpu'"):
        TextToImage.from_pretrained(bundle, device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float8", "int8", "", torch.int8])
def test_a_wrong_dtype_is_refused_with_those_allowed(bundle: Path, dtype: object):
    with pytest.raises(InvalidInput, match="'auto', 'float32', 'bfloat16', 'float16'"):
        TextToImage.from_pretrained(bundle, dtype=dtype)  # type: ignore[arg-type]


def test_a_clip_that_cannot_be_loaded_stops_the_request_early(tmp_path: Path):
    failed: Future[Scorer] = Future()
    failed.set_exception(BundleError("clip.safetensors is broken"))
    stages: list[str] = []
    stream = pipe_of(tmp_path, failed).stream(PROMPT, PARAMS)
    with pytest.raises(BundleError, match=r"clip\.safetensors is broken"):
        stages.extend(progress.stage for progress in stream)
    assert "decoding" not in stages


def test_waiting_for_a_clip_that_is_still_loading_can_be_cancelled(tmp_path: Path):
    loading: Future[Scorer] = Future()
    pipe, cancel = pipe_of(tmp_path, loading), threading.Event()
    at_ranking = (cancel.set() for progress in pipe.stream(PROMPT, PARAMS, cancel) if progress.stage == "ranking")
    with pytest.raises(Cancelled):
        list(at_ranking)
    stream = pipe.stream(PROMPT, PARAMS)
    stages = [next(p.stage for p in stream if p.stage == "ranking")]
    loading.set_result(Brightness())
    stages += [p.stage for p in stream]
    assert stages[-1] == "done"


def test_what_is_no_model_is_told(tmp_path: Path):
    with pytest.raises(BundleError, match="neither 'demo'"):
        TextToImage.from_pretrained("no such thing at all")
    with pytest.raises(BundleError, match=r"config\.json"):
        TextToImage.from_pretrained(tmp_path)
