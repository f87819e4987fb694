"""What options demand of each other."""

from lib.config.settings import Options
from lib.errors import UserError

_MAX_HUE = 0.5  # half of the colour circle; further would come back on the other side


def check_together(options: Options) -> None:
    """Check the options that only make sense together.

    Raises:
        UserError: naming the options that contradict each other.
    """
    for name in ("scale", "ratio"):
        low, high = getattr(options, name)
        if low > high:
            raise UserError(f"--{name} {low} {high}: the first number must not be above the second")
    if options.colorjitter[3] > _MAX_HUE:
        hue = options.colorjitter[3]
        raise UserError(f"--colorjitter: the fourth number, hue, is {hue}; at most {_MAX_HUE} is possible")
    if not options.protocol:
        raise UserError("--protocol names nothing; name one or more of knn, nn, linear, cluster, or leave it out")
    if options.resize is not None and options.resize < options.size:
        raise UserError(f"--resize {options.resize} is below --size {options.size}; raise it, or leave it null")
    if options.shrink is not None and options.shrink < options.size:
        raise UserError(f"--shrink {options.shrink} is below --size {options.size}; raise it, or leave it null")
    if options.labels is not None and options.dataset != "photos":
        raise UserError(
            f"--labels is for --dataset photos; {options.dataset} brings its own labels, if it has any; leave it null"
        )
    if options.first_round >= options.max_round:
        raise UserError(
            f"--first-round {options.first_round} leaves no round of --max-round {options.max_round}; raise "
            "--max-round, which counts round 0 even where it is left out"
        )
    if options.lr_policy == "multistep":
        _check_schedule(options)
    if options.optimizer == "sgd" and options.nesterov:
        if options.momentum == 0:
            raise UserError("--nesterov needs a --momentum above 0; add --no-nesterov")
        if options.dampening != 0:
            raise UserError(f"--nesterov needs --dampening 0, not {options.dampening}; or add --no-nesterov")
    for name in ("restart", "report_only"):
        if getattr(options, name) and options.resume is None:
            raise UserError(f"--{name.replace('_', '-')} needs --resume with the checkpoint to use")
    if options.compare and (options.resume is not None or options.session is not None):
        raise UserError("--compare trains nothing and evaluates nothing; leave out --resume and --session")
    _check_use(options)
    if options.session is not None and options.resume is not None and not options.restart:
        raise UserError(
            "--session names a new session and --resume goes on in an old one; add --restart to take the state along"
        )


def _check_use(options: Options) -> None:
    wanted = [flag for flag in ("test_only", "export", "embed") if getattr(options, flag)]
    names = ["--" + flag.replace("_", "-") for flag in wanted]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} are separate calls; give one of them")
    if names and options.resume is None and options.pretrained is None:
        raise UserError(f"{names[0]} needs --resume with the checkpoint to use, or --pretrained with a file of weights")
    if options.output is not None and options.embed is None:
        raise UserError("--output says where --embed writes; --export takes its folder itself")
    if options.overwrite and options.embed is None and options.export is None:
        raise UserError("--overwrite goes with --export or --embed")


def _check_schedule(options: Options) -> None:
    epochs = options.lr_schedule
    if not epochs:
        raise UserError("--lr-policy multistep needs --lr-schedule with the epochs of the decays, e.g. 120 160")
    if any(later <= earlier for earlier, later in zip(epochs, epochs[1:])):
        raise UserError(f"--lr-schedule {' '.join(map(str, epochs))}: the epochs must increase")
