"""Decodes one captioned image from a stranger into a square of pixels, or names the reason to skip it.

Independent of models.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageOps

from ttt.data.filters import Filters

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are decoded. Pillow supports dozens more; some start other programs, most are never fuzzed."""
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff",
)  # fmt: skip
MAX_IMAGE_BYTES = 64 << 20
MAX_PIXELS = 89_000_000
"""Larger images are taken for decompression bombs; Pillow begins to warn at about the same size."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO, ORIENTATION = 258, 262, 0, 0x0112
"""TIFF tags, and a value of the second."""

Caption = bytes | str | Sequence[Any] | None
"""The content of a caption file, a text, or a list of captions of which one is used."""


@dataclass(frozen=True)
class Pair:
    """An image and its caption as a source provides them; None for what is missing."""

    name: str
    image: bytes | Path | None
    caption: Caption
    nsfw: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    """Size of the image before it was reduced, if the source knows it."""
    problem: str | None = None
    """Kind of `SKIP_REASONS` that the source has found already."""


SKIP_REASONS = {
    "short_caption": "caption too short",
    "nsfw": "NSFW label not the one to keep",
    "extreme_aspect": "image too long or too wide",
    "bad_caption": "caption missing or not UTF-8",
    "bad_image": "image missing, broken, too large, or of an unknown format or range of values",
    "broken_archive": "archives that are broken or incomplete",
    "broken_table": "Parquet files that are broken or lack the columns",
}
"""Why a pair is not encoded: the kind that is counted, and its human-readable label."""


@dataclass(frozen=True)
class PreparedImage:
    """A pair ready for the VQGAN: pixels uint8 [resolution, resolution, 3]; sizes in pixels and bytes as stored."""

    caption: str
    nsfw: str
    width: int
    height: int
    pixels: NDArray[np.uint8]
    stored_bytes: int


def prepare_image(pair: Pair, resolution: int, filters: Filters, unlabelled: str) -> PreparedImage | str:
    """The image as a square, or the kind of `SKIP_REASONS` under which the pair is skipped. Never raises.

    unlabelled: the NSFW label of pairs that have none.
    """
    caption, nsfw = caption_text(pair.caption), pair.nsfw or unlabelled
    # First the filters that need no pixels; 1 x 1 stands for the size, which is not known yet.
    reason = pair.problem or filters.refusal(caption, nsfw, 1, 1)
    if reason is not None or caption is None:
        return reason or "bad_caption"
    try:
        content = _content(pair.image)
        try:
            return _prepare(content, caption, nsfw, pair, resolution, filters)
        except Exception:
            # Pillow refuses PNG files with more than 1 MB of text (workflows of image generators, XMP).
            without_text = _without_text(content)
            if len(without_text) == len(content):
                raise
            return _prepare(without_text, caption, nsfw, pair, resolution, filters)
    except Exception:  # Pillow's decoders raise any kind of error: struct.error, SyntaxError, IndexError ...
        return "bad_image"


def _prepare(
    content: bytes, caption: str, nsfw: str, pair: Pair, resolution: int, filters: Filters
) -> PreparedImage | str:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            return "bad_image"
        sizes = (pair.original_width, pair.original_height)
        width, height = sizes if all(_is_size(side) for side in sizes) else _upright_size(image)
        assert width is not None and height is not None
        reason = filters.refusal(caption, nsfw, width, height)
        if reason is not None:
            return reason
        return PreparedImage(caption, nsfw, width, height, crop_square(image, resolution), len(content))


def crop_square(image: Image.Image, resolution: int) -> NDArray[np.uint8]:
    """The middle square, upright, on white, scaled with a Lanczos filter: uint8 [resolution, resolution, 3].

    Raises ValueError if the range of values is unknown, which is the case for some images of floating-point numbers.
    """
    image.draft("RGB", (2 * resolution, 2 * resolution))  # a JPEG is then decoded at 1/2, 1/4 or 1/8 of its size
    white = _white_level(image)
    upright = ImageOps.exif_transpose(image)
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    middle = upright.crop((left, top, left + side, top + side))
    if white is not None:
        middle = _to_8_bits(middle, white, is_inverted=_tag(image, PHOTOMETRIC) == WHITE_IS_ZERO)
    if middle.has_transparency_data:
        middle = middle.convert("RGBA")
        middle = Image.alpha_composite(Image.new("RGBA", middle.size, "white"), middle)
    middle = middle.convert("RGB")
    return np.asarray(middle.resize((resolution, resolution), Image.Resampling.LANCZOS))


def _white_level(image: Image.Image) -> float | None:
    """The value of white in a gray image of more than 8 bits, which Pillow would clip at 255; else None.

    Raises ValueError where it cannot be known.
    """
    bits = (_tag(image, BITS_PER_SAMPLE) or (16,))[0]
    if image.mode.startswith("I;16"):
        return float(2**bits - 1)
    if image.mode not in ("I", "F"):
        return None
    low, high = image.getextrema()
    if image.mode == "F":  # by convention from 0 to 1
        if not 0 <= low <= high <= 1:  # type: ignore[operator]
            raise ValueError(f"floating-point values from {low} to {high} have no known white")
        return 1.0
    if bits == 16 and low >= 0:  # type: ignore[operator]
        return 32767.0  # signed, or Pillow would have chosen I;16
    # 32-bit integers in practice hold 8 or 16 bits, stored by programs that know no smaller type.
    if not 0 <= low <= high < 2**16:  # type: ignore[operator]
        raise ValueError(f"32-bit values from {low} to {high} have no known white")
    return 255.0 if high < 256 else 65535.0  # type: ignore[operator]


def _to_8_bits(image: Image.Image, white: float, *, is_inverted: bool) -> Image.Image:
    """A gray image of any depth as 8 bits, transparent where its file declares a transparent value."""
    values = np.asarray(image)
    scaled = values.astype(np.float32) * (255 / white)
    if not np.isfinite(scaled).all():
        raise ValueError("some values are NaN or infinite")
    gray = Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))
    if is_inverted:
        gray = ImageChops.invert(gray)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def _tag(image: Image.Image, tag: int) -> Any:
    """A tag of a TIFF image; None for other formats."""
    return getattr(image, "tag_v2", {}).get(tag)


def _content(image: bytes | Path | None) -> bytes:
    if isinstance(image, Path):
        with image.open("rb") as file:
            image = file.read(MAX_IMAGE_BYTES + 1)
    if not image or len(image) > MAX_IMAGE_BYTES:
        raise ValueError("the image is missing or too large")
    return image


def _without_text(content: bytes) -> bytes:
    """A PNG file without its text chunks; anything else unchanged."""
    if not content.startswith(PNG_SIGNATURE):
        return content
    parts, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length  # length, kind and checksum take 4 bytes each
        if kind not in PNG_TEXT_CHUNKS:
            parts.append(content[position:end])
        position = end
    return b"".join(parts)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    is_turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if is_turned else (image.width, image.height)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def caption_text(caption: Caption) -> str | None:
    """The caption without surrounding white space; None if there is no valid text.

    Of a list of captions, and of the lines of a caption file, the first that is not empty is used: a pair has one
    caption, and the choice must not change when encoding is resumed.
    """
    if isinstance(caption, bytes):
        text = decode_text(caption)
        caption = None if text is None else text.splitlines() or [""]
    if isinstance(caption, str):
        return caption.lstrip("\ufeff").strip() if _is_unicode(caption) else None
    texts = [caption_text(item) for item in caption if isinstance(item, (str, bytes))] if caption is not None else []
    return next(filter(None, texts), next((text for text in texts if text is not None), None))


def decode_text(content: bytes) -> str | None:
    """The text of a file in UTF-8, or in UTF-16 with a byte-order mark (Windows); None if it is neither."""
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")  # a byte-order mark is not part of the text
    except UnicodeDecodeError:
        return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # halves of surrogate pairs, which Parquet cannot hold
        return False
    return True
