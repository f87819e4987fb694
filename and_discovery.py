"""Use a trained network from Python, in a few lines.

    import and_discovery

    model = and_discovery.load("sessions/NAME")              # or a checkpoint, or a folder that --export wrote
    features = model.features(["a.jpg", "b.jpg"])            # (2, D) float32, rows of unit length
    paths, features = model.folder("pictures")               # every picture in a folder, at any depth
    similarities, rows = model.nearest(features, k=5)        # the most similar training images, by row

The name is that of the project in pyproject.toml: `and` alone is a keyword of Python. This file stands beside main.py,
so it is found from any working directory once that folder is on `sys.path`; put it first there, since the packages
beside it have plain names (`datasets`, `models`, `lib`) that others use too.
"""

from lib.errors import RunError, UserError
from lib.packages import check_packages

check_packages()

from lib.results.model import Model  # noqa: E402
from lib.results.opening import open_model as load  # noqa: E402

__all__ = ["Model", "RunError", "UserError", "load"]
