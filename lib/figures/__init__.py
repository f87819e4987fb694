"""Pictures and charts: thumbnails, anchor grids, attention maps, and figures that matplotlib draws."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_matplotlib() -> Iterator[None]:
    """Hides MPLBACKEND during the import: a notebook's value, inherited by a child process, would make it fail."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


@contextmanager
def default_settings() -> Iterator[None]:
    """Figures drawn within it have matplotlib's default settings: a user's may require LaTeX or other fonts."""
    with importing_matplotlib():
        import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
