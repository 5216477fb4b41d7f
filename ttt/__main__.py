"""The command line, `ttt` or `python -m ttt`. Slow imports wait for the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttt import __version__
from ttt.config import DTYPE_NAMES
from ttt.data.encode_command import encode_command
from ttt.errors import InvalidInput, TTTError
from ttt.fields import expand_options
from ttt.sampling.params import SamplingParams
from ttt.swarm.cli import add_commands
from ttt.train.command import train as train_command

if TYPE_CHECKING:
    from ttt.config import DalleConfig
    from ttt.pipeline import TextToImage
    from ttt.types import Progress

WRONG_INPUT, INTERRUPTED, NOT_WRITABLE = 2, 130, 1
"""Exit codes; typer also exits with 2 for unknown options."""
_DTYPES = ", ".join(DTYPE_NAMES[:-1]) + f" or {DTYPE_NAMES[-1]}"
_BUNDLE_DTYPES = ("float32", "float16", "bfloat16")

app = typer.Typer(
    name="ttt",
    help="Training Transformers Together: generate images from text, and train the model together over the Internet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take longer than the rest of `--help`
)


@contextmanager
def report_errors() -> Iterator[None]:
    """Print our errors, and Ctrl-C, as one line on stderr with an exit code: bad input never ends in a traceback."""
    try:
        yield
    except TTTError as error:
        _print_error(f"Error: {error}" + (f"\n{error.hint}" if error.hint else ""))
        raise typer.Exit(WRONG_INPUT) from None
    except KeyboardInterrupt:
        _print_error("Stopped.")
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        _print_error(f"Error: {error}")
        raise typer.Exit(NOT_WRITABLE) from None


@app.command()
@report_errors()
@expand_options
def generate(
    prompt: Annotated[
        str, typer.Argument(help="Description of the image, for example: a red circle above a blue square")
    ],
    params: SamplingParams,
    model: Annotated[str, typer.Option(help="'demo', a bundle folder, or a Hub id (owner/name).")] = "demo",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the Hub id.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help=f"Precision: auto, {_DTYPES} (fastest on CPUs).")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the images; created if missing.")] = Path("out"),
) -> None:
    """Generate images for a prompt, rank them with CLIP and save the best ones."""
    from ttt.tokenizer import check_prompt

    check_prompt(prompt)  # before the model is loaded, which takes seconds
    _print_error(f"Loading {model} ...")
    from ttt import TextToImage
    from ttt.results import save

    pipe = TextToImage.from_pretrained(model, revision=revision, device=device, dtype=dtype)
    last = _run_with_progress_bar(pipe, prompt, params)
    paths = save(out, last.images, last.ranking, prompt=prompt, params=params, model=pipe.name)
    for path, ranked in zip(paths, last.images, strict=True):
        typer.echo(f"{path}  CLIP score {ranked.score:.4f}  candidate {ranked.candidate}")


@app.command()
@report_errors()
def convert(
    out: Annotated[Path, typer.Option(help="The bundle folder to write.")],
    dalle: Annotated[Path | None, typer.Option(help="Transformer: model_state.pt. Default: the published one.")] = None,
    dalle_config: Annotated[
        str, typer.Option(help="'paper', or a JSON file with the fields of DalleConfig.")
    ] = "paper",
    vqgan: Annotated[
        Path | None, typer.Option(help="VQGAN: Lightning's last.ckpt. Default: the published one.")
    ] = None,
    vqgan_config: Annotated[Path | None, typer.Option(help="The VQGAN's model.yaml.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json. Default: the one of t5-small.")] = None,
    clip: Annotated[str, typer.Option(help="MODEL:PRETRAINED of open_clip, or a folder.")] = "ViT-B-32:openai",
    pad_id: Annotated[int, typer.Option(help="The token that pads short prompts.", min=0)] = 1,
    name: Annotated[str, typer.Option(help="Name of the model in the bundle. Default: the folder's name.")] = "",
    dtype: Annotated[str, typer.Option(help="Stored precision: float32, float16 or bfloat16.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Revision of the published transformer.")] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option("--trust-pickle", help="Unpickle files that need it. RUNS THE CODE IN THEM: trusted files only."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the bundle in a folder that is not empty.")
    ] = False,
) -> None:
    """Convert the published files into a bundle; parts that are not given are downloaded."""
    if (vqgan is None) != (vqgan_config is None):
        raise InvalidInput("--vqgan and --vqgan-config belong together: give both or neither")
    from ttt.bundle.convert import convert as convert_files
    from ttt.bundle.convert import parse_clip
    from ttt.bundle.hub_files import Hub
    from ttt.bundle.published import fetch_published_files
    from ttt.hardware import DTYPES

    if dtype not in _BUNDLE_DTYPES:
        raise InvalidInput(f"dtype must be one of {', '.join(_BUNDLE_DTYPES)}, got {dtype!r}")
    config, clip_spec = _dalle_config(dalle_config), parse_clip(clip)
    if dalle is None or vqgan is None or vqgan_config is None or tokenizer is None:
        published = fetch_published_files(Hub(), revision=revision)
        dalle, tokenizer = dalle or published.dalle, tokenizer or published.tokenizer
        vqgan, vqgan_config = vqgan or published.vqgan, vqgan_config or published.vqgan_config
    bundle = convert_files(
        out,
        dalle=dalle,
        dalle_config=config,
        vqgan=vqgan,
        vqgan_config=vqgan_config,
        tokenizer=tokenizer,
        clip=clip_spec,
        pad_id=pad_id,
        name=name or out.resolve().name,
        dtype=DTYPES[dtype],
        trust_pickle=trust_pickle,
        overwrite=overwrite,
    )
    typer.echo(f"{bundle.root}  {bundle.name}")


app.command(name="train")(report_errors()(train_command))


app.command(name="encode")(report_errors()(encode_command))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _run_with_progress_bar(pipe: TextToImage, prompt: str, params: SamplingParams) -> Progress:
    """Return the last Progress of a request; the others move a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("prefill", total=1.0)
        for progress in pipe.stream(prompt, params):
            bar.update(task, completed=progress.fraction, description=progress.stage)
    return progress


def _dalle_config(spec: str) -> DalleConfig:
    from ttt.bundle.convert import read_dalle_config
    from ttt.config import PAPER

    return PAPER if spec == "paper" else read_dalle_config(spec)


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


add_commands(app, report_errors)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
