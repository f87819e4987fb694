"""The commands of main.py, one module each; `run` chooses the one that the options name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from lib.commands.start import FromWeights, find_start
from lib.config import Options, Settings, table
from lib.distributed.process_info import ProcessInfo
from lib.errors import UserError, one_line
from lib.runtime.packages import check_packages

if TYPE_CHECKING:
    from lib.commands.call import Call
    from lib.distributed.world import World


def run(settings: Settings, arguments: Sequence[str], process: ProcessInfo) -> int:
    """Run the command that the options name.

    PyTorch is imported only where something is computed: --compare and --print-args do without it.

    Args:
        settings: the options of the command line and the config files.
        arguments: the command line, without the program's name.
        process: rank and world size of this process.

    Returns:
        the exit status.

    Raises:
        UserError, RunError, Interrupted: as the command.
    """
    if settings.options.compare:
        if process.rank == 0:
            from lib.report.compare import compare

            compare(settings.options.compare, settings.options.compare_html, settings.options.sess_dir)
        return 0
    check_packages()
    if process.size == 1:
        return _run(settings, arguments, process, None)
    from lib.distributed.process_group import joined

    with joined(settings.options.gpus, process) as world:
        return _run(settings, arguments, process, world)


def _run(settings: Settings, arguments: Sequence[str], process: ProcessInfo, world: Optional["World"]) -> int:
    """Run any command but --compare. `world`: the processes of the run if they are joined already."""
    settings, start = find_start(settings, arguments, process, is_joined=world is not None)
    if settings.options.print_args:
        if process.rank == 0:
            print(table(settings))
        return 0
    processes = settings.options.gpus.count(",") + 1
    if processes > 1 and not process.launched:
        return _launch(settings.options, processes, arguments)
    if isinstance(start, FromWeights) and start.note and process.rank == 0:
        print(one_line(start.note))
    from lib.commands.call import prepared

    with prepared(settings, start, process, world) as call:
        _command(settings.options)(call)
    return 0


def _command(options: Options) -> Callable[["Call"], None]:
    """The command that the options name. Only its module is imported: some imports take a second."""
    if options.embed is not None:
        from lib.commands.embed import embed as command
    elif options.report_only:
        from lib.commands.report import report as command
    elif options.export is not None:
        from lib.commands.export import export as command
    elif options.test_only:
        from lib.commands.evaluate import evaluate as command
    else:
        from lib.commands.train import train as command
    return command


def _launch(options: Options, processes: int, arguments: Sequence[str]) -> int:
    """`--gpus 0,1`: start one process for each GPU and wait for them.

    Raises:
        UserError: a GPU is missing, or all processes would read the same pipe.
    """
    from lib.distributed.launch import launch
    from lib.runtime.device import choose_device

    for path in filter(None, (*options.cfgs, options.labels)):
        if Path(path).expanduser().is_fifo():
            raise UserError(
                f"--gpus {options.gpus}: {path} is a pipe, and {processes} processes would read it; save it as a file"
            )
    choose_device(options.gpus, 0, processes)  # a missing device is reported once, not by each process
    return launch(processes, arguments)
