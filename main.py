"""Anchor neighbourhood discovery: learn image features without labels.

    python3 main.py --cfgs configs/base.yaml configs/digits.yaml        # a minute on a CPU, no download
    python3 main.py --cfgs configs/base.yaml configs/cifar10.yaml       # the paper's CIFAR-10 recipe
    python3 main.py --resume sessions/NAME                              # resume a run
    python3 main.py --resume sessions/NAME --test-only                  # evaluate
    python3 main.py --compare sessions/A sessions/B                     # side by side, without PyTorch
    python3 main.py --resume sessions/NAME --export FOLDER              # features, clusters, network as plain files
    python3 main.py --resume sessions/NAME --embed PICTURES             # features of new pictures
    python3 main.py --help                                              # every option

    python3 main.py --gpus 0,1 ...                                      # several GPUs of this machine
    torchrun --nproc_per_node 4 main.py ...                             # the same by hand, and on several machines

Exit status: 0 done, 1 the run failed, 2 a mistake in the call, 130 stopped by Ctrl-C and 143 by SIGTERM (saved, and
ready to resume); under torchrun also 75, another process of the run ended.
"""

import os
import sys
import warnings
from collections.abc import Sequence

if __name__ == "__main__":  # PYTHONSAFEPATH and -P leave the script's folder out
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lib.commands import run
from lib.config import collect
from lib.distributed.process_info import ProcessInfo
from lib.errors import Interrupted, UserError, error_text, exit_status, one_line
from lib.logger.console import prepare_streams, print_error, print_traceback


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status.

    An error is printed on standard error: one line, or with --debug-errors its traceback.

    Raises:
        BrokenPipeError: the reader of a pipe has left.
    """
    process = ProcessInfo.here()
    prepare_streams()
    debug = "--debug-errors" in arguments
    try:
        settings = collect(arguments)
        debug = settings.options.debug_errors
    except UserError as error:
        if debug or process.local_rank == 0:  # once on each machine
            _print(error, process, debug)
        return exit_status(error)
    try:
        return run(settings, arguments, process)
    except BrokenPipeError:
        raise
    except Interrupted as stop:
        if process.rank == 0:
            print_error(one_line(stop))
        return stop.status
    except Exception as error:
        _print(error, process, debug)
        return exit_status(error)
    except KeyboardInterrupt:
        _print_error("stopped by the keyboard", process)
        return 130


def _print(error: Exception, process: ProcessInfo, debug: bool) -> None:
    """Print an error on standard error: one line, or its traceback."""
    if debug:
        print_traceback()
    else:
        _print_error(error_text(error), process)


def _print_error(reason: str, process: ProcessInfo) -> None:
    who = f"rank {process.rank}: " if process.size > 1 else ""
    print_error(f"error: {who}{one_line(reason)}")


if __name__ == "__main__":
    if any(action == "error" for action, *_ in warnings.filters):  # PYTHONWARNINGS=error: libraries warn
        warnings.simplefilter("default")
    status = 1
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except OSError:  # the reader of a pipe has left, as in `main.py --help | head`; or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 1
    if status and ProcessInfo.here().size > 1:  # exit() could wait for a GPU that waits for another process
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
