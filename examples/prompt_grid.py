"""Writes a sheet with the best images of several prompts: python -m examples.prompt_grid --out grid.png

The README's grid was made by this script with its defaults.
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageDraw, ImageFont

from ttt import RankedImage, SamplingParams, TextToImage

PROMPTS = (
    "a red circle above a blue square",
    "a small green star on a white background",
    "a yellow triangle to the left of a purple circle",
    "a big orange heart",
    "a pink ring below a brown cross on a gray background",
    "a blue diamond on a black background",
)
SIDE, GAP, LABEL = 128, 8, 22


def sheet(rows: list[tuple[str, list[RankedImage]]]) -> Image.Image:
    """A row for each prompt: its text, and its images below, best first."""
    columns = max(len(best) for _, best in rows)
    height = LABEL + SIDE + GAP
    canvas = Image.new("RGB", (GAP + columns * (SIDE + GAP), GAP + len(rows) * height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for row, (prompt, best) in enumerate(rows):
        top = GAP + row * height
        pen.text((GAP, top), prompt, fill="black", font=font)
        for column, ranked in enumerate(best):
            left = GAP + column * (SIDE + GAP)
            canvas.paste(ranked.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top + LABEL))
            pen.rectangle([left - 1, top + LABEL - 1, left + SIDE, top + LABEL + SIDE], outline="#cccccc")
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="*", default=PROMPTS, help="the prompts (default: six)")
    parser.add_argument("--model", default="demo", help="demo, a bundle folder or a Hub id")
    parser.add_argument("--candidates", type=int, default=128, help="images to generate for each prompt")
    parser.add_argument("--keep", type=int, default=4, help="images to show for each prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="grid.png", help="where the sheet is written")
    options = parser.parse_args()
    pipe = TextToImage.from_pretrained(options.model)
    params = SamplingParams(candidates=options.candidates, keep=options.keep, seed=options.seed)
    sheet([(prompt, pipe(prompt, params)) for prompt in options.prompts]).save(options.out)


if __name__ == "__main__":
    main()
