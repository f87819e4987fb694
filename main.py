"""Anchor neighbourhood discovery: learn image features without labels.

    python3 main.py --cfgs configs/base.yaml configs/digits.yaml        # minutes on a CPU, no download
    python3 main.py --cfgs configs/base.yaml configs/cifar10.yaml       # the paper's CIFAR-10 recipe
    python3 main.py --resume sessions/NAME                              # go on where it stopped
    python3 main.py --resume sessions/NAME --test-only                  # evaluate
    python3 main.py --help                                              # every option

Exit status: 0 done, 1 the run failed, 2 a mistake in the call, 130 stopped by the keyboard.
"""

import os
import sys
from collections.abc import Sequence

from lib.config import Settings, collect, table
from lib.errors import RunError, UserError


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. Errors are one line on standard error."""
    try:
        settings = collect(arguments)
    except UserError as error:
        if "--debug-errors" in arguments:
            raise
        return _failed(error, 2)
    try:
        run(settings, arguments)
    except BrokenPipeError:
        raise
    except (UserError, RunError, OSError) as error:
        if settings.options.debug_errors:
            raise
        return _failed(error, 2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        return _failed("stopped by the keyboard", 130)
    return 0


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Print the options, or train, go on, or evaluate."""
    saved = source = None
    if settings.options.resume is not None:
        from lib.session import checkpoint
        from lib.session.folder import find_checkpoint

        source = find_checkpoint(settings.options.resume, settings.options.sess_dir)
        saved = checkpoint.load(source)
        settings = collect(arguments, saved["options"])
    if settings.options.print_args:
        print(table(settings))
        return
    from lib.training.command import execute  # PyTorch is loaded only now, when there is something to compute

    execute(settings, saved, source)


def _failed(reason: object, status: int) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough, as in `main.py --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
