"""`python -m ttt run | coordinator | peer`: options and their words. Slow imports wait for their command."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

ErrorsTold = Callable[[], AbstractContextManager[None]]
RUNS = Path("runs")


def _prepare() -> None:
    """Before anything slow, and before hivemind speaks."""
    from ttt.swarm.averaging import check_hivemind
    from ttt.swarm.process.lifecycle import check_machine
    from ttt.swarm.process.reporter import quiet_hivemind

    check_machine()
    check_hivemind()
    quiet_hivemind()


def add_commands(app: typer.Typer, errors_told: ErrorsTold) -> None:
    """errors_told: turns our errors into a line on stderr and an exit code."""
    run = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Begin a run of your own, or set one back.")
    app.add_typer(run, name="run")

    @run.command()
    def new(
        file: Annotated[Path, typer.Argument(help="The run file to write, for example run.toml.")],
        name: Annotated[str, typer.Option(help="Name of the run. Default: the file's.")] = "",
    ) -> None:
        """Write a run file with every setting explained."""
        with errors_told():
            import shlex

            from ttt.swarm.config.run_file import check_name, new_settings, write_run_file

            write_run_file(file, new_settings(check_name(name) if name else file.stem))
            quoted = shlex.quote(str(file))
            typer.echo(f"{file}: change what you like, then start  python -m ttt coordinator --run {quoted}")

    @run.command()
    def rollback(
        to: Annotated[int, typer.Option(help="Step of the checkpoint to go back to.")],
        run: Annotated[str, typer.Option(help="The run file.")],
        folder: Annotated[Path | None, typer.Option(help="The coordinator's folder.")] = None,
    ) -> None:
        """Set a run back to a checkpoint; the coordinator must be stopped, peers come along by themselves."""
        with errors_told():
            from ttt.swarm.config.run_file import read_run_file
            from ttt.swarm.coordinator.generations import roll_back

            settings = read_run_file(run)
            kept = roll_back(folder or RUNS / settings.run.name / "coordinator", settings, to)
            typer.echo(f"going on from {kept.path} once the coordinator is started again")

    @run.command()
    def export(
        folder: Annotated[Path, typer.Option(help="The coordinator's folder, or any with a history.sqlite.")],
        out: Annotated[Path, typer.Option(help="The file to write.")] = Path("history.json"),
    ) -> None:
        """Write a run's history as one small file, which the Dashboard shows without the run."""
        with errors_told():
            from ttt.errors import InvalidInput
            from ttt.swarm.history.export import export as write
            from ttt.swarm.history.reader import HistoryReader
            from ttt.swarm.history.schema import HISTORY_FILE

            with HistoryReader(folder / HISTORY_FILE) as history:
                try:
                    size = write(history, out)
                except OSError as error:
                    raise InvalidInput(f"{out} cannot be written: {error}; choose another --out") from None
            typer.echo(f"{out}: {size:,} bytes")

    @app.command()
    def coordinator(
        run: Annotated[str, typer.Option(help="The run file, or its URL.")],
        folder: Annotated[Path | None, typer.Option(help="For checkpoints, identity and status.")] = None,
        host: Annotated[str, typer.Option(help="Address to listen on instead of the run file's.")] = "",
        port: Annotated[int, typer.Option(help="Port instead of the run file's.", min=0, max=65535)] = 0,
        announce: Annotated[list[str] | None, typer.Option(help="Address under which others reach it.")] = None,
        initial_peer: Annotated[list[str] | None, typer.Option(help="Of a network to join; usually none.")] = None,
    ) -> None:
        """Found a run and keep it: entry point, monitor and checkpoints."""
        with errors_told():
            _prepare()
            from ttt.swarm.config.options import CoordinatorOptions
            from ttt.swarm.config.run_file import read_run_file
            from ttt.swarm.coordinator.coordinator import run_coordinator

            settings = read_run_file(run)
            options = CoordinatorOptions(
                run=run,
                folder=folder or RUNS / settings.run.name / "coordinator",
                host=host,
                port=port,
                announce=tuple(announce or ()),
                initial_peers=tuple(initial_peer or ()),
            )
            run_coordinator(options, settings)

    @app.command()
    def peer(
        run: Annotated[str, typer.Option(help="The run file, or its URL.")],
        initial_peer: Annotated[list[str] | None, typer.Option(help="Address that the coordinator prints.")] = None,
        coordinator: Annotated[
            str, typer.Option(help="Its id, the end of its address: to join at another peer while it is away.")
        ] = "",
        folder: Annotated[Path | None, typer.Option(help="For identity, status and backup.")] = None,
        name: Annotated[str, typer.Option(help="How you are called on the leaderboard.")] = "",
        device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
        precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
        micro_batch: Annotated[int, typer.Option(help="Samples at once; 0: as many as fit.", min=0)] = 0,
        limit: Annotated[float, typer.Option(help="At most so many samples a second; 0: all it can.", min=0)] = 0.0,
        host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
        port: Annotated[int, typer.Option(help="Port to listen on; 0: any.", min=0, max=65535)] = 0,
        announce: Annotated[list[str] | None, typer.Option(help="Address under which others reach this peer.")] = None,
        client: Annotated[bool, typer.Option("--client", help="Do not listen: behind a NAT or in a Space.")] = False,
        no_relay: Annotated[bool, typer.Option("--no-relay", help="Neither use nor look for relays.")] = False,
        auxiliary: Annotated[
            bool, typer.Option("--auxiliary", help="Help others to average; no training, no GPU needed.")
        ] = False,
        until: Annotated[int, typer.Option(help="Leave after this step; 0: stay.", min=0)] = 0,
        seed: Annotated[int | None, typer.Option(help="Order of this peer's data. Default: random.")] = None,
        plain: Annotated[
            bool, typer.Option("--plain", help="Lines of text, also on a terminal that could show more.")
        ] = False,
    ) -> None:
        """Take part in a run with this machine."""
        with errors_told():
            _prepare()
            from ttt.swarm.config.options import PeerOptions
            from ttt.swarm.config.run_file import read_run_file
            from ttt.swarm.peer.peer import run_peer

            settings = read_run_file(run)
            run_peer(
                PeerOptions(
                    run=run,
                    initial_peers=tuple(initial_peer or ()),
                    coordinator=coordinator,
                    folder=folder or RUNS / settings.run.name / "peer",
                    name=name,
                    device=device,
                    precision=precision,
                    micro_batch=micro_batch,
                    limit=limit,
                    host=host,
                    port=port,
                    announce=tuple(announce or ()),
                    client=client,
                    relay=not no_relay,
                    auxiliary=auxiliary,
                    until=until,
                    seed=seed,
                    plain=plain,
                ),
                settings,
            )
