"""Which training images the rows of a memory bank belong to, if the data set is at hand."""

from dataclasses import replace
from typing import Optional

import torch

import datasets
from datasets.files.paths import Paths
from datasets.pipeline import Pipeline
from lib.config import Options
from lib.errors import UserError


def training_paths(
    options: Options, fingerprint: Optional[str], contents: Optional[list[int]]
) -> tuple[Optional[Paths], str]:
    """The paths of the training images in the order of the bank, or None; and a line for the log.

    The data set is looked for where the options say. It is taken only if it is the one of the checkpoint.
    """
    if fingerprint is None:
        return None, "named by their rows: the file does not say which images they are"
    try:
        split = datasets.load(options.dataset, options.data_root, False)
        # names are all that is wanted: nothing is decoded, no batch will be asked for
        pipeline = Pipeline(split, replace(options, augment_on="workers", shrink=None), torch.device("cpu"))
    except UserError as error:
        return None, f"named by their rows, since the data set is not at hand ({error})"
    if not pipeline.are_those_of(fingerprint, contents):
        return None, f"named by their rows, since the {options.dataset} images at hand are not those of the checkpoint"
    if pipeline.train.paths is None:
        return None, f"named by their rows: {options.dataset} has no files of single images"
    return pipeline.train.paths, "named by their paths"
