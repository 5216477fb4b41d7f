"""One captioned image as a stranger stored it -> a square picture worth encoding, or why not. Knows no model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from ttt.data.rows import Filters

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows dozens more; some start other programs, most are never fuzzed."""
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_IMAGE_BYTES = 64 << 20
MAX_PIXELS = 89_000_000
"""More are taken for a decompression bomb; about where Pillow begins to warn."""


@dataclass(frozen=True)
class Pair:
    """An image and its caption, as a source gives them; None for what it lacks."""

    name: str
    image: bytes | Path | None
    caption: bytes | str | None
    nsfw: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    """Of the image before somebody reduced it, where the source says so."""
    problem: str | None = None
    """Kind of `SKIP_REASONS` that the source already knows of."""


SKIP_REASONS = {
    "short_caption": "caption too short",
    "nsfw": "NSFW label not the wanted one",
    "extreme_aspect": "image too long or too wide",
    "bad_caption": "caption missing or not UTF-8",
    "bad_image": "image missing, broken, too large or of an unknown format",
    "pickle": "pickled content, which is never loaded",
    "broken_archive": "archives that end too early or are none",
}
"""Why a pair is not encoded."""


@dataclass(frozen=True)
class PreparedImage:
    """A pair fit for the VQGAN: pixels uint8 [resolution, resolution, 3]; sizes in pixels and bytes as stored."""

    caption: str
    nsfw: str
    width: int
    height: int
    pixels: NDArray[np.uint8]
    stored_bytes: int


def prepare_image(pair: Pair, resolution: int, filters: Filters, unlabelled: str) -> PreparedImage | str:
    """The picture, or the kind of `SKIP_REASONS` that the pair falls under. Whatever the bytes are, nothing is raised.

    unlabelled: the NSFW label of pairs that have none.
    """
    caption, nsfw = _text(pair.caption), pair.nsfw or unlabelled
    # What needs no pixels first; a size of 1 x 1 stands for the one that is not known yet.
    reason = pair.problem or filters.refusal(caption, nsfw, 1, 1)
    if reason is not None or caption is None:
        return reason or "bad_caption"
    try:
        content = _content(pair.image)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return "bad_image"
            sizes = (pair.original_width, pair.original_height)
            width, height = sizes if all(_is_size(side) for side in sizes) else _upright_size(image)
            assert width is not None and height is not None
            reason = filters.refusal(caption, nsfw, width, height)
            if reason is not None:
                return reason
            pixels = crop_square(image, resolution)
    except (
        Exception
    ):  # Pillow's decoders raise whatever comes to their minds: struct.error, SyntaxError, IndexError ...
        return "bad_image"
    return PreparedImage(caption, nsfw, width, height, pixels, len(content))


def crop_square(image: Image.Image, resolution: int) -> NDArray[np.uint8]:
    """The middle square, upright, on white, scaled with a Lanczos filter: [resolution, resolution, 3]."""
    image.draft("RGB", (2 * resolution, 2 * resolution))  # JPEGs: decoded at a half, a quarter or an eighth
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    upright = upright.convert("RGB")
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    middle = upright.crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((resolution, resolution), Image.Resampling.LANCZOS))


def _content(image: bytes | Path | None) -> bytes:
    if isinstance(image, Path):
        with image.open("rb") as file:
            image = file.read(MAX_IMAGE_BYTES + 1)
    if not image or len(image) > MAX_IMAGE_BYTES:
        raise ValueError("no image, or a giant one")
    return image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    is_turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if is_turned else (image.width, image.height)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _text(caption: bytes | str | None) -> str | None:
    """The caption, stripped; None where it is no text."""
    try:
        if isinstance(caption, bytes):
            caption = caption.decode("utf-8")
        if isinstance(caption, str):
            caption.encode("utf-8")  # halves of surrogate pairs, which Parquet cannot hold
            return caption.strip()
    except UnicodeError:
        pass
    return None
