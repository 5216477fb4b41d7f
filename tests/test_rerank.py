"""CLIP scores, compared with open_clip's own preprocessing, and broken CLIPs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.support.tiny import TINY_CLIP, tiny_clip, write_tokenizer
from ttt.bundle import Bundle, ClipSpec
from ttt.errors import BundleError, CheckpointError
from ttt.rerank import ClipScorer, load_in_background, text_ids


def random_images(side: int) -> list[Image.Image]:
    made = []
    for i in range(4):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(
            (side, side)
        )
        ImageDraw.Draw(image).ellipse((side // 4, side // 5, side // 2, side - 9 * i % side), fill=(200, 40 * i, 10))
        made.append(image)
    return made


def as_tensor(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])


@pytest.fixture(scope="module")
def local_spec(bundle: Bundle) -> ClipSpec:
    return bundle.clip


@pytest.fixture(scope="module")
def thin_vit() -> ClipScorer:
    """A CLIP with the image, patch and text sizes of the published one, but narrow and with random weights."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 224, "patch_size": 32, "width": 64, "layers": 2},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
        quick_gelu=True,
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return ClipScorer(model, lambda prompt: tokenizer([prompt]))


@torch.inference_mode()
@pytest.mark.parametrize("side", [256, 224, 128])
def test_preprocessing_of_tensors_equals_that_of_open_clip(thin_vit: ClipScorer, side: int):
    from open_clip import image_transform

    images = random_images(side)
    theirs = image_transform(224, is_train=False)
    prepared = torch.stack([theirs(image) for image in images])
    ours = thin_vit.prepare(as_tensor(images))
    assert (ours - prepared).abs().max() < 0.035  # two of 255 levels
    expected = thin_vit.model.encode_image(prepared, normalize=True)  # type: ignore[operator]
    assert ((thin_vit.embed_images(as_tensor(images)) * expected).sum(-1) > 0.9999).all()


@torch.inference_mode()
def test_scores_are_100_times_the_cosine_whatever_the_batch(thin_vit: ClipScorer):
    images = as_tensor(random_images(224))
    scores = thin_vit.scores(images, "a photo of a circle")
    model, tokens = thin_vit.model, thin_vit.tokenize("a photo of a circle")
    text = model.encode_text(tokens)[0]  # type: ignore[operator]
    seen = model.encode_image(thin_vit.prepare(images))  # type: ignore[operator]
    torch.testing.assert_close(scores, 100 * torch.cosine_similarity(seen, text[None]), atol=1e-3, rtol=0)
    one_by_one = torch.cat([thin_vit.scores(image[None], "a photo of a circle") for image in images])
    torch.testing.assert_close(one_by_one, scores, atol=1e-3, rtol=0)


def test_a_local_clip_reads_the_bundles_tokens(local_spec: ClipSpec):
    scorer = ClipScorer.from_spec(local_spec)
    assert scorer.tokenize("a red circle").tolist() == [[2, 3, 6, 14, 0, 0, 0, 0]]
    assert scorer.tokenize("a " * 30).tolist() == [[2] * 7 + [14]]
    images = as_tensor(random_images(8))
    first, again = scorer.scores(images, "a red circle"), scorer.scores(images, "a red circle")
    assert torch.equal(first, again)
    assert first.shape == (4,)
    assert not torch.allclose(first, scorer.scores(images, "a blue square"))
    assert (first.abs() <= 100.001).all()
    expected = tiny_clip()
    with torch.inference_mode():
        seen = expected.encode_image(scorer.prepare(images), normalize=True)  # type: ignore[operator]
        text = expected.encode_text(scorer.tokenize("a red circle"), normalize=True)  # type: ignore[operator]
    torch.testing.assert_close(first, 100 * (seen @ text.T)[:, 0])


def test_prompts_in_any_script_are_scored(local_spec: ClipSpec, thin_vit: ClipScorer):
    for scorer in (ClipScorer.from_spec(local_spec), thin_vit):
        for prompt in ("красный круг", "一个红色的圆圈", "🔴", "\ud800"):
            assert scorer.scores(torch.rand(1, 3, 8, 8), prompt).isfinite().all()


def test_ids_are_cut_ended_and_padded():
    assert text_ids([5, 6, 7], end=9, length=6, vocab_size=10).tolist() == [5, 6, 7, 9, 0, 0]
    assert text_ids([5] * 9, end=9, length=3, vocab_size=10).tolist() == [5, 5, 9]
    assert text_ids([], end=9, length=2, vocab_size=10).tolist() == [9, 0]
    assert text_ids([5, 44], end=9, length=4, vocab_size=10).tolist() == [5, 9, 0, 0]


def changed(spec: ClipSpec, folder: Path, config: dict[str, object]) -> ClipSpec:
    path = folder / "clip_config.json"
    path.write_text(json.dumps(config))
    return ClipSpec(config=path, weights=spec.weights, tokenizer=spec.tokenizer)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"embed_dim": 16, "vision_cfg": TINY_CLIP["vision_cfg"]},
        {**TINY_CLIP, "surprise": 1},
        {**TINY_CLIP, "vision_cfg": {"layers": "many"}},
        {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "hf_model_name": "someone/model"}},
        {**TINY_CLIP, "vision_cfg": {"timm_model_name": "resnet18"}},
    ],
)
def test_a_wrong_configuration_is_named(local_spec: ClipSpec, tmp_path: Path, config: dict[str, object]):
    with pytest.raises(BundleError, match="clip_config.json"):
        ClipScorer.from_spec(changed(local_spec, tmp_path, config))


def test_weights_of_another_model_are_refused(local_spec: ClipSpec, tmp_path: Path):
    other = {**TINY_CLIP, "embed_dim": 8}
    with pytest.raises(CheckpointError, match="clip.safetensors"):
        ClipScorer.from_spec(changed(local_spec, tmp_path, other))


def test_a_tokenizer_without_an_end_is_refused(local_spec: ClipSpec, tmp_path: Path):
    path = write_tokenizer(tmp_path / "words.json")
    path.write_text(path.read_text().replace("[EOS]", "[STOP]"))
    with pytest.raises(BundleError, match=r"words.json has no token \[EOS\]"):
        ClipScorer.from_spec(ClipSpec(config=local_spec.config, weights=local_spec.weights, tokenizer=path))


def test_an_unknown_name_lists_the_known_tags():
    with pytest.raises(BundleError, match="ViT-B-32.*openai"):
        ClipScorer.from_spec(ClipSpec(model="ViT-B-32", pretrained="nobody"))


def test_an_error_of_loading_in_the_background_is_raised(local_spec: ClipSpec, tmp_path: Path):
    assert load_in_background(local_spec).result(60).scores(torch.rand(1, 3, 8, 8), "red").shape == (1,)
    with pytest.raises(BundleError):
        load_in_background(changed(local_spec, tmp_path, {})).result(60)
