"""Names in errors: what the user wrote, and what was probably meant."""

import difflib
from collections.abc import Iterable


def hint(name: str, known: Iterable[str]) -> str:
    """How an error about an unknown name goes on: the nearest known name, or where all of them are listed."""
    # batch-size, BatchSize and --batchsize differ from batch_size in nothing that counts
    plain = {_plain(candidate): candidate for candidate in known}
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    return f"did you mean {plain[near[0]]}?" if near else "--help lists the options"


def shown(name: str) -> str:
    """A name as an error repeats it: quoted if it is empty or would break the line."""
    return name if name.isprintable() and name else repr(name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
