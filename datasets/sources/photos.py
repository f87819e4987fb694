"""Pictures as people have them: one folder, anything below it, no classes, nothing kept apart for a test."""

from pathlib import Path

from datasets.files.found_files import ENDINGS, Found, look_through
from datasets.image_set import ImageSet
from datasets.split import Split
from datasets.transforms.normalisation import IMAGENET
from lib.errors import UserError


def photos(root: Path, download: bool) -> Split:
    """Every picture below `root`, at any depth, in the order of the paths; all of them are there to learn from.

    What begins with a dot is passed over, and so are session folders, folders that systems make, and files that are
    no pictures by their names; the notes count them. Links are followed.

    Raises:
        UserError: there is no such folder, it cannot be read, or no picture is in it.
    """
    if not root.is_dir():
        raise UserError(f"--dataset photos: there is no folder {root}; point --data-root at your pictures")
    found = pictures_below(str(root), f"--dataset photos: {root}")
    return Split("photos", ImageSet(found.pictures), None, *IMAGENET, tuple(found.passed_over()))


def pictures_below(folder: str, asked: str) -> Found:
    """What `look_through` finds; at least one picture.

    Args:
        asked: how a message begins.

    Raises:
        UserError: the folder cannot be read, or no picture is in it.
    """
    try:
        found = look_through(folder)
    except OSError as error:
        raise UserError(f"{asked}: {error.filename} cannot be read: {error.strerror}") from error
    if not found.pictures:
        raise UserError(f"{asked} holds no pictures ({ENDINGS}){found.holdings()}")
    return found
