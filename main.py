"""Anchor neighbourhood discovery: learn image features without labels.

    python3 main.py --cfgs configs/base.yaml configs/digits.yaml        # a minute on a CPU, no download
    python3 main.py --cfgs configs/base.yaml configs/cifar10.yaml       # the paper's CIFAR-10 recipe
    python3 main.py --resume sessions/NAME                              # go on where it stopped
    python3 main.py --resume sessions/NAME --test-only                  # evaluate
    python3 main.py --compare sessions/A sessions/B                     # side by side, without PyTorch
    python3 main.py --resume sessions/NAME --export FOLDER              # features, clusters, network as plain files
    python3 main.py --resume sessions/NAME --embed PICTURES             # features of new pictures
    python3 main.py --help                                              # every option

    python3 main.py --gpus 0,1 ...                                      # several GPUs of this machine
    torchrun --nproc_per_node 4 main.py ...                             # the same by hand, and on several machines

Exit status: 0 done, 1 the run failed, 2 a mistake in the call, 130 stopped by Ctrl-C and 143 by SIGTERM (saved, and
ready to go on); under torchrun also 75, another process of the run ended.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Python leaves the script's folder out under PYTHONSAFEPATH and -P
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lib.config import Options, Settings, collect, of_older_version, table
from lib.distributed.process_info import ProcessInfo
from lib.errors import PEER_FAILURE, Interrupted, PeerFailure, RunError, UserError, one_line
from lib.logger.console import prepare_streams, print_error, print_traceback
from lib.runtime.packages import check_packages


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. Errors are one line on standard error, or a traceback if asked for.

    Raises:
        BrokenPipeError: whoever reads the output has seen enough.
    """
    place = ProcessInfo.here()
    prepare_streams()
    debug = "--debug-errors" in arguments
    try:
        settings = collect(arguments)
        debug = settings.options.debug_errors
    except UserError as error:
        if debug or place.local_rank == 0:  # one of each machine says it
            _say(error, place, debug)
        return _status(error)
    try:
        return run(settings, arguments, place)
    except BrokenPipeError:
        raise
    except Interrupted as stop:
        if place.rank == 0:
            print_error(one_line(stop))
        return stop.status
    except Exception as error:
        _say(error, place, debug)
        return _status(error)
    except KeyboardInterrupt:
        _print_error("stopped by the keyboard", place)
        return 130


def run(settings: Settings, arguments: Sequence[str], place: ProcessInfo) -> int:
    """Print the options, compare sessions, or train, go on, or evaluate. Returns the exit status."""
    if settings.options.compare:
        if place.rank == 0:
            from lib.report.compare import compare

            compare(settings.options.compare, settings.options.compare_html, settings.options.sess_dir)
        return 0
    check_packages()
    if place.size == 1:
        return _run(settings, arguments, place, None)
    from lib.distributed.process_group import together

    with together(settings.options.gpus, place) as world:
        return _run(settings, arguments, place, world)


def _run(settings: Settings, arguments: Sequence[str], place: ProcessInfo, world: Any) -> int:
    """What `run` does, but for comparing. `world`: the processes of the run, or None for this one alone."""
    saved = source = weights = note = None
    if settings.options.resume is not None:
        from lib.checkpoint.resume import open_checkpoint, statistics
        from lib.pretrained import weights_file

        try:
            saved, source, passed_over = open_checkpoint(settings.options.resume, settings.options.sess_dir)
        except UserError as refusal:
            weights = weights_file.instead_of_checkpoint(Path(settings.options.resume), refusal)
    if weights is not None:
        settings = _using_others(settings.options, weights, arguments, settings.files)
        note = f"{weights.name}: {weights.kind}; its network is used as with --pretrained"
    elif saved is not None:
        for line in passed_over if place.rank == 0 else ():
            print_error(f"warning: {one_line(line)}")
        # numbers of GPUs are of a machine; processes that have met have their devices already
        stays = world is None and saved["options"].get("gpus") == "cpu"
        stored = {name: value for name, value in saved["options"].items() if stays or name != "gpus"}
        stored = {**of_older_version(stored), **stored}
        settings = collect(arguments, stored, settings.files)
        if settings.options.test_only and settings.options.normalise == stored.get("normalise"):
            settings = collect(arguments, {**stored, **statistics(saved)}, settings.files)
        if settings.sources["pretrained"] == "command line":
            raise UserError(_ONE_OF_THEM)
    elif settings.options.pretrained is not None:
        from lib.pretrained import weights_file

        weights = weights_file.read(Path(settings.options.pretrained))
        settings = collect(arguments, weights.layer(settings.options.normalise is None), settings.files)
    if settings.options.print_args:
        if place.rank == 0:
            print(table(settings))
        return 0
    several = settings.options.gpus.count(",") + 1
    if several > 1 and not place.launched:
        from lib.distributed.launch import launch
        from lib.runtime.device import choose_device

        for path in filter(None, (*settings.options.cfgs, settings.options.labels)):
            if Path(path).expanduser().is_fifo():
                raise UserError(
                    f"--gpus {settings.options.gpus}: {path} is a pipe, and {several} processes would read it; save it "
                    "as a file"
                )
        choose_device(settings.options.gpus, 0, several)  # a device that is missing is said once, not by each process
        return launch(several, arguments)
    from lib.commands.train import execute  # PyTorch is loaded only now, when there is something to compute

    if note is not None and place.rank == 0:
        print(one_line(note))
    execute(settings, saved, source, place, weights, world)
    return 0


_ONE_OF_THEM = "--pretrained starts a new run and --resume goes on with one; give one of them"


def _using_others(options: Options, weights: Any, arguments: Sequence[str], files: Any) -> Settings:
    """The settings where --resume names weights of another origin: those of --pretrained with the same file.

    Raises:
        UserError: a run is to be resumed, or --pretrained is given as well.
    """
    if options.pretrained is not None:
        raise UserError(_ONE_OF_THEM)
    if not (options.test_only or options.export or options.embed):
        raise UserError(
            f"--resume {weights.name}: it is {weights.kind}, which holds no run that can be resumed; --pretrained "
            f"{weights.name} starts a new run from its weights, and --test-only evaluates them"
        )
    settings = collect(arguments, weights.layer(options.normalise is None), files)
    return replace(settings, options=replace(settings.options, resume=None, pretrained=weights.name))


def _in_one_line(error: Exception) -> str:
    """An error as the user sees it. One that nobody foresaw says so."""
    if isinstance(error, (UserError, RunError)):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in ("datasets", "models", "lib"):
        package = error.name.partition(".")[0]
        module = sys.modules.get(package)
        ours = Path(__file__).resolve().parent / package
        # a folder without __init__.py has no file, and a file that is no package has no path
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
        if place is not None and ours not in (Path(place), Path(place).parent):
            return (
                f"another package called {package} was imported first ({place}); run main.py in a process of its own, "
                "or use and_discovery, which works beside it"
            )
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return (
            f"the Python package {error.name} is missing in {sys.executable}; use the environment that has what "
            "requirements.txt lists (make demo makes one: . .venv/bin/activate), or pip install -r requirements.txt"
        )
    reason = " ".join(str(error).split())
    return f"unforeseen {type(error).__name__}: {reason}; --debug-errors shows where it happened"


def _status(error: Exception) -> int:
    if isinstance(error, PeerFailure):
        return PEER_FAILURE
    return 2 if isinstance(error, UserError) else 1


def _say(error: Exception, place: ProcessInfo, debug: bool) -> None:
    """On standard error: one line, or where the error that is being handled happened."""
    if debug:
        print_traceback()
    else:
        _print_error(_in_one_line(error), place)


def _print_error(reason: str, place: ProcessInfo) -> None:
    who = f"rank {place.rank}: " if place.size > 1 else ""
    print_error(f"error: {who}{one_line(reason)}")


if __name__ == "__main__":
    if any(action == "error" for action, *_ in warnings.filters):  # PYTHONWARNINGS: a library's advice is no error here
        warnings.simplefilter("default")
    status = 1
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except OSError:  # whoever read the output has seen enough, as in `main.py --help | head`; or its disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 1
    if status and ProcessInfo.here().size > 1:  # a GPU may wait for a process that is gone, and exit() for that GPU
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
