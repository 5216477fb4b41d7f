"""One image and its caption become the square that is encoded, or the reason for which the pair is skipped."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from tests.support.images import image_bytes
from ttt.data.filters import Filters
from ttt.data.images import MAX_PIXELS, Pair, crop_square, prepare_image


def broken_images() -> dict[str, bytes]:
    whole = image_bytes(0, (64, 64))
    header = b"\x89PNG\r\n\x1a\n" + whole[8:16] + (60_000).to_bytes(4, "big") * 2
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    return {"empty": b"", "text": b"not an image", "truncated": whole[: len(whole) // 2], "bomb": header + whole[24:],
            "eps": eps, "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}  # fmt: skip


@pytest.mark.parametrize("name", broken_images())
def test_images_that_cannot_be_read_are_skipped_as_bad_image(name: str) -> None:
    assert prepare_image(Pair("x", broken_images()[name], "a caption"), 8, Filters(), "UNLIKELY") == "bad_image"


def test_a_decompression_bomb_is_never_unpacked() -> None:
    side = int(MAX_PIXELS**0.5) + 100
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    assert len(content.getvalue()) < 100_000
    with pytest.warns(Image.DecompressionBombWarning):
        assert prepare_image(Pair("x", content.getvalue(), "a caption"), 8, Filters(), "UNLIKELY") == "bad_image"


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        (Pair("x", image_bytes(0), "ab"), "short_caption"),
        (Pair("x", image_bytes(0), "   ab  "), "short_caption"),
        (Pair("x", image_bytes(0), None), "bad_caption"),
        (Pair("x", image_bytes(0), b"\xff\xfe\xfd"), "bad_caption"),
        (Pair("x", image_bytes(0), "\ud800 half"), "bad_caption"),
        (Pair("x", image_bytes(0), "a caption", nsfw="NSFW"), "nsfw"),
        (Pair("x", image_bytes(0, (41, 20)), "a caption"), "extreme_aspect"),
        (Pair("x", image_bytes(0, (20, 41)), "a caption"), "extreme_aspect"),
        (Pair("x", image_bytes(0), "a caption", original_width=100, original_height=20), "extreme_aspect"),
        (Pair("x", None, "a caption"), "bad_image"),
    ],
)
def test_pairs_that_the_run_skipped_are_skipped(pair: Pair, kind: str) -> None:
    assert prepare_image(pair, 8, Filters(), "UNLIKELY") == kind


def test_any_bytes_give_an_image_or_a_reason() -> None:
    chance = random.Random(0)
    whole = {kind: image_bytes(0, (32, 32), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")}
    for content in whole.values():
        for _ in range(40):
            broken = bytearray(content)
            for _ in range(chance.randint(1, 8)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            found = prepare_image(Pair("x", bytes(broken), "a caption"), 8, Filters(), "UNLIKELY")
            assert found in ("bad_image", "extreme_aspect") or found.pixels.shape == (8, 8, 3)  # type: ignore[union-attr]


def test_the_middle_square_is_taken_upright_and_on_white() -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (10, 0, 30, 20))
    assert (crop_square(image, 8) == (0, 0, 255)).all()
    tall = Image.new("RGB", (10, 20), "red")
    tall.paste("blue", (0, 5, 10, 15))
    assert (crop_square(tall, 4) == (0, 0, 255)).all()
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (crop_square(clear, 8) == 255).all()
    turned = Image.new("RGB", (20, 20), "red")
    turned.paste("blue", (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    content = io.BytesIO()
    turned.save(content, "PNG", exif=exif)
    found = crop_square(Image.open(io.BytesIO(content.getvalue())), 4)
    assert (found[0] == (255, 0, 0)).all()
    assert (found[3] == (0, 0, 255)).all()
