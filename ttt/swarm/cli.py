"""The commands `ttt run`, `ttt coordinator` and `ttt peer`. Slow imports (torch, hivemind) wait for their command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ttt.fields import describe, expand_options
from ttt.swarm.config.options import CoordinatorOptions, JoinOptions, PeerOptions

ReportErrors = Callable[[], Any]
"""Makes a context manager that is a decorator too."""
RUNS = Path("runs")


def _help(name: str) -> str:
    return describe(CoordinatorOptions, name).help


def _folder(chosen: Path | None, run: str, member: str) -> Path:
    """The chosen folder; shells leave the ~ of --folder=~/x to the program."""
    return chosen.expanduser() if chosen else RUNS / run / member


def _prepare() -> None:
    """Check the machine before anything slow, and silence hivemind before it is imported."""
    from ttt.swarm.averaging import check_hivemind
    from ttt.swarm.process.lifecycle import check_machine
    from ttt.swarm.process.reporter import quiet_hivemind

    check_machine()
    check_hivemind()
    quiet_hivemind()


def add_commands(app: typer.Typer, report_errors: ReportErrors) -> None:
    """report_errors: turns our errors into a line on stderr and an exit code."""
    run = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare, roll back or export a run.")
    app.add_typer(run, name="run")

    @run.command()
    def new(
        file: Annotated[Path, typer.Argument(help="The run file to write, for example run.toml.")],
        name: Annotated[str, typer.Option(help="Name of the run. Default: the name of the file.")] = "",
    ) -> None:
        """Write a run file with a description of every setting."""
        with report_errors():
            import shlex

            from ttt.swarm.config.run_file import check_name, new_settings, write_run_file

            write_run_file(file, new_settings(check_name(name) if name else file.stem))
            quoted = shlex.quote(str(file))
            typer.echo(f"{file}: edit it, then start  ttt coordinator --run {quoted}")

    @run.command()
    def rollback(
        to: Annotated[int, typer.Option(help="Step of the checkpoint to return to.")],
        run: Annotated[str, typer.Option(help="The run file, or its URL.")],
        folder: Annotated[Path | None, typer.Option(help="The coordinator's folder.")] = None,
    ) -> None:
        """Return a run to an earlier checkpoint. Stop the coordinator first; peers follow automatically."""
        with report_errors():
            from ttt.swarm.config.run_file import read_run_file
            from ttt.swarm.coordinator.generations import roll_back

            settings = read_run_file(run)
            checkpoint = roll_back(_folder(folder, settings.run.name, "coordinator"), settings, to)
            typer.echo(f"the run will resume from {checkpoint.path} when the coordinator is started again")

    @run.command()
    def export(
        folder: Annotated[Path, typer.Option(help="The coordinator's folder, or any other with a history.sqlite.")],
        out: Annotated[Path, typer.Option(help="The file to write.")] = Path("history.json"),
    ) -> None:
        """Write the history of a run as one small file, which the Dashboard shows without the run."""
        with report_errors():
            from ttt.errors import InvalidInput
            from ttt.swarm.history.export import export as write
            from ttt.swarm.history.reader import HistoryReader
            from ttt.swarm.history.schema import HISTORY_FILE

            with HistoryReader(folder.expanduser() / HISTORY_FILE) as history:
                try:
                    size = write(history, out)
                except OSError as error:
                    raise InvalidInput(f"{out} cannot be written: {error}; choose another --out") from None
            typer.echo(f"{out}: {size:,} bytes")

    @app.command()
    def coordinator(
        run: Annotated[str, typer.Option(help=_help("run"))],
        folder: Annotated[Path | None, typer.Option(help=f"{_help('folder')} Default: runs/NAME/coordinator.")] = None,
        host: Annotated[str, typer.Option(help=_help("host"))] = "",
        port: Annotated[int, typer.Option(help=_help("port"), min=0, max=65535)] = 0,
        announce: Annotated[list[str] | None, typer.Option(help=_help("announce"))] = None,
        initial_peer: Annotated[list[str] | None, typer.Option(help=_help("initial_peers"))] = None,
    ) -> None:
        """Start or resume a run as its coordinator: admits peers, writes checkpoints, keeps the history."""
        with report_errors():
            _prepare()
            from ttt.swarm.config.run_file import read_run_file
            from ttt.swarm.coordinator.coordinator import run_coordinator

            settings = read_run_file(run)
            options = CoordinatorOptions(
                run=run,
                folder=_folder(folder, settings.run.name, "coordinator"),
                host=host,
                port=port,
                announce=tuple(announce or ()),
                initial_peers=tuple(initial_peer or ()),
            )
            run_coordinator(options, settings)

    def peer(
        join: JoinOptions,
        folder: Annotated[
            Path | None,
            typer.Option(help=f"{describe(PeerOptions, 'folder').help} Default: runs/NAME/peer."),
        ] = None,
    ) -> None:
        """Join a run and train on this machine."""
        _prepare()
        from ttt.swarm.config.run_file import read_run_file
        from ttt.swarm.peer.peer import run_peer

        settings = read_run_file(join.run)
        folder = _folder(folder, settings.run.name, "peer")
        run_peer(PeerOptions(**join.model_dump(), folder=folder), settings)

    app.command()(report_errors()(expand_options(peer)))  # the options are checked before `peer` is called
