"""Generate images with a running app and save them.

For example: python examples/generate.py "a red circle" --out out

Start the app first (`make run`), or name another with --app: an address, or a Space such as owner/name.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from gradio_client import Client
from gradio_client.exceptions import AppError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--keep", type=int, default=4)
    parser.add_argument("--seed", type=int, default=None, help="default: the app chooses one and reports it")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--app", default="http://127.0.0.1:7860")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()

    client = Client(options.app, verbose=False)
    job = client.submit(
        prompt=options.prompt,
        candidates=options.candidates,
        keep=options.keep,
        seed=options.seed,
        model=options.model,
        api_name="/generate",
    )
    try:
        for _, report in job:  # progress, then the result
            if report["status"] != "finished":
                print(
                    f"{report['status']:>8} {report['stage']:<9} {report['fraction']:6.1%}", end="\r", file=sys.stderr
                )
        images, report = job.result()
    except KeyboardInterrupt:
        job.cancel()  # the app stops working for us
        return 130
    except AppError as error:
        print(f"The app refused: {error}", file=sys.stderr)
        return 2

    options.out.mkdir(parents=True, exist_ok=True)
    for image, about in zip(images, report["images"], strict=True):
        shutil.copy(image, options.out / about["file"])
        print(f"{options.out / about['file']}  CLIP {about['score']:.2f}  candidate {about['candidate']}")
    (options.out / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"seed {report['params']['seed']}, {report['seconds']:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
