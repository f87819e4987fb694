"""What TensorBoard is told once: how to lay out the charts, and the options of the run."""

from collections.abc import Mapping
from typing import Any, Optional

from lib.errors import one_line

OVERVIEW, ANCHORS, IMAGES = "1_Overview", "2_Anchors", "3_Images"
"""Groups that come before all others: TensorBoard orders groups by their names on the page that it opens with."""

_IN_OVERVIEW = {
    "1_Loss": "Train/Loss",
    "2_kNN_accuracy": "Evaluate/Rank-1",
    "3_Nearest_neighbour_kept": "Neighbours/Kept",
    "4_Cosine_to_nearest": "Neighbours/Cosine",
    "5_Entropy": "Neighbours/Entropy",
    "6_Entropy_of_anchors": "Neighbours/Entropy_of_anchors",
    "7_Consistency": "ANs/Consistency",
    "8_Clusters": "Clusters/Number",
}

_NOT_COMPARED = frozenset(
    [
        *("sess_dir", "debug", "brief", "display_freq", "log_file", "log_tfb", "tfb_anchors", "tfb_projector", "gpus"),
        *("compile", "winograd", "cuda_graph", "discovery_memory", "workers_num", "prefetch", "skip_bad_images"),
    ]
)
"""Options that no result depends on."""

_UNLABELLED_METRICS = ("Train/Loss", "Neighbours/Kept", "Neighbours/Cosine", "Neighbours/Entropy", "Clusters/Number")
_LABELLED_METRICS = ("Evaluate/Rank-1", "Evaluate/best_acc", "ANs/Consistency")


def overview(scalars: Mapping[str, Optional[float]]) -> dict[str, Optional[float]]:
    """Those of the run's scalars that are to be seen first, once more under tags that the rounds do not have.

    Where both have a tag, every chart shows the whole run and all of its rounds at once.
    """
    return {f"{OVERVIEW}/{short}": scalars[tag] for short, tag in _IN_OVERVIEW.items() if tag in scalars}


def layout(labelled: bool) -> Any:
    """The page Custom Scalars: what to look at first, first."""
    from tensorboardX.summary import custom_scalars

    def chart(*names: str) -> list[Any]:
        return ["Multiline", [f"{OVERVIEW}/{name}$" for name in names]]

    by_labels = {"kNN accuracy": chart("2_kNN_accuracy")} if labelled else {}
    consistency = {"anchors whose neighbours have their label": chart("7_Consistency")} if labelled else {}
    return custom_scalars(
        {
            "Does it learn?": {
                **by_labels,
                "loss": chart("1_Loss"),
                "share of images whose nearest neighbour is that of the round before": chart(
                    "3_Nearest_neighbour_kept"
                ),
            },
            "Neighbourhoods": {
                **consistency,
                "cosine to the nearest neighbour": chart("4_Cosine_to_nearest"),
                "entropy, of all images and of anchors": chart("5_Entropy", "6_Entropy_of_anchors"),
                "clusters": chart("8_Clusters"),
            },
            "How the run goes (each round from its own start, too)": {
                "anchors": ["Multiline", ["ANs/Number$"]],
                "learning rate": ["Multiline", ["Train/Learning_Rate$"]],
                "images per second": ["Multiline", ["Train/Images_per_second$"]],
            },
        }
    )


def start_of_hyperparameters(options: Mapping[str, Any], labelled: bool) -> list[Any]:
    """The page HParams: the options of a run, and which of its scalars are its final figures."""
    from tensorboardX.summary import hparams

    compared = {name: _cell(value) for name, value in options.items() if name not in _NOT_COMPARED}
    metrics = (*_LABELLED_METRICS, *_UNLABELLED_METRICS) if labelled else _UNLABELLED_METRICS
    experiment, start, _ = hparams(compared, dict.fromkeys(metrics, 0))
    return [experiment, start]


def end_of_hyperparameters() -> Any:
    """That the run was not stopped."""
    from tensorboardX.summary import hparams

    return hparams({}, {})[2]


def _cell(value: Any) -> Any:
    """A value as the table takes it: a text for what may be missing or is a list, so that a column has one type.

    TensorBoard's files hold UTF-8 alone, paths may hold any bytes.
    """
    return value if isinstance(value, (bool, int, float)) else one_line(value)
