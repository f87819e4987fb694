"""Pictures and charts: thumbnails, anchor grids, attention maps, and figures that matplotlib draws."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_matplotlib() -> Iterator[None]:
    """Hides MPLBACKEND: a notebook passes it to its child processes, where the import fails without its backend."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


@contextmanager
def as_shipped() -> Iterator[None]:
    """Figures made and drawn within it have matplotlib's own settings: a user's may ask for LaTeX or other fonts."""
    with importing_matplotlib():
        import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
