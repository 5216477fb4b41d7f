"""Draw the sprite sheet of the demo's world from two icon sets: python scripts/build_sprites.py FLUENT NOTO

FLUENT and NOTO are `icons.json` of `@iconify-json/fluent-emoji-flat` 1.2.6 (MIT) and `@iconify-json/noto` 1.2.9
(Apache-2.0), from the npm registry (`npm pack`). The SVGs are rendered by `resvg-py` 0.5.0 from PyPI. Nothing else in
the repository needs these packages: the sheet is `ttt/data/world/sprites.webp`.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ttt.data.world.nouns import NOUNS  # noqa: E402
from ttt.data.world.sprites import MARGIN, SHEET, SIZES, STYLES  # noqa: E402

OVERSAMPLING = 8


def render(icons: dict[str, Any], name: str, side: int) -> Image.Image:
    """One icon as RGBA, `side` x `side` pixels."""
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def fit(icon: Image.Image, size: int) -> Image.Image:
    """The icon without its transparent border, as large as the sprite allows, centred and standing on its base."""
    visible = icon.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    assert visible is not None
    icon = icon.crop(visible)
    inner = size - 2 * MARGIN
    scale = inner / max(icon.size)
    width, height = (max(1, round(side * scale)) for side in icon.size)
    # Premultiplied alpha: the colour of transparent pixels must not bleed into the edges.
    small = icon.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    sprite = Image.new("RGBA", (size, size))
    sprite.paste(small, ((size - width) // 2, size - MARGIN - height))
    return sprite


def main() -> None:
    sets = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3]]
    if len(sets) != len(STYLES):
        sys.exit(__doc__)
    tallest = max(SIZES)
    sheet = Image.new("RGBA", (len(STYLES) * sum(SIZES), len(NOUNS) * tallest))
    for row, noun in enumerate(NOUNS.values()):
        left = 0
        for icons in sets:
            icon = render(icons, noun.icon, OVERSAMPLING * tallest)
            for size in SIZES:
                sheet.paste(fit(icon, size), (left, row * tallest))
                left += size
    sheet.save(SHEET, lossless=True, quality=100, method=6)


if __name__ == "__main__":
    main()
