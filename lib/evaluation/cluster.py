"""Protocol `cluster`: k-means of the training features, compared with the classes where there are labels."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from torch import Tensor

from datasets.image_set import UNLABELLED
from datasets.pipeline import Pipeline
from lib.clustering.clusters import NumberOfClusters, choose_number
from lib.clustering.kmeans import Clustering, spherical_kmeans
from lib.config import Options
from lib.config.option import AUTO
from lib.distributed.world import World
from lib.evaluation.evaluator import Protocol, Results
from lib.evaluation.features import Features
from lib.logger.console import LOGGER
from lib.seeding import derive

WIDEST, LONGEST = 20, 60
"""The most classes and clusters of a confusion table on the terminal; the file has all."""

SILHOUETTE_ROWS = 4000
"""The most rows for the silhouette, which compares each with every other."""

log = logging.getLogger(LOGGER)


@dataclass(frozen=True, eq=False)
class Agreement:
    """Clusters against classes: shares of 1, the adjusted Rand index from -0.5 to 1.

    Attributes:
        accuracy: of the best one-to-one matching of clusters and classes. All values are over the labelled images.
        nmi, ari: normalised mutual information (arithmetic mean), adjusted Rand index.
        table: (K, C) how many images of each class are in each cluster.
        class_of: the class that a cluster is matched with; clusters beyond the number of classes have none.
    """

    accuracy: float
    nmi: float
    ari: float
    table: np.ndarray
    class_of: dict[int, int]


class Cluster(Protocol):
    """Spherical k-means on the unit features of all training images, computed with the test transform.

    Args:
        pipeline: the images; labels are used for the comparison alone.
        world: the processes of the run. The first one clusters the features of all, the others wait for it.
        every: epochs between evaluations.
        clusters: K as text, or `auto`.
        seed: of all random draws.
    """

    name = "cluster"

    def __init__(self, pipeline: Pipeline, world: World, every: int, clusters: str, seed: int):
        self.pipeline, self.world, self.every, self.seed = pipeline, world, every, seed
        self._wanted = None if clusters == AUTO else int(clusters)

    @classmethod
    def create(cls, name: str, options: Options, pipeline: Pipeline, world: World) -> "Cluster":
        return cls(pipeline, world, options.cluster_freq, options.num_clusters, options.seed)

    def obstacle(self) -> Optional[str]:
        images = len(self.pipeline.train)
        if self._wanted is not None and self._wanted > images:
            return f"--num-clusters {self._wanted} is more than the {images:,} training images; choose fewer, or auto"
        return None

    def evaluate(self, features: Features) -> Optional[Results]:
        """The results on the first process; None on the others."""
        rows = features.all_train()
        if rows is None:
            return None
        number, count = None, self._wanted
        if count is None:
            number = choose_number(rows, self.seed)
            count = number.clusters
        clustering = spherical_kmeans(rows, count, self.seed)
        silhouette_mean = silhouette(rows, clustering.assignments.numpy(), derive(self.seed, "silhouette"))
        agreement = self._agreement(clustering)
        scalars = {
            "cluster_count": count,
            "cluster_cosine": clustering.objective,
            "cluster_silhouette": silhouette_mean,
        }
        if number is not None:
            scalars["cluster_confidence"] = number.confidence
        if agreement is not None:
            scalars.update(cluster_accuracy=agreement.accuracy, cluster_nmi=agreement.nmi, cluster_ari=agreement.ari)
        classes = self.pipeline.train.classes

        def write(folder: Path) -> list[Path]:
            paths = [_write_table(folder / "cluster-table.csv", clustering, agreement, classes)]
            plot = folder / "cluster-number.png"
            if number is not None:
                paths.append(plot_number(number, plot))
            elif plot.exists():  # of an earlier table
                plot.unlink()
            return paths

        summary = _summary(clustering, silhouette_mean, agreement)
        return Results(scalars, summary, _report(clustering, number, agreement, classes), write)

    def _agreement(self, clustering: Clustering) -> Optional[Agreement]:
        labels = self.pipeline.train.labels
        if labels is None:
            return None
        labelled = labels != UNLABELLED
        if not labelled.any():
            return None
        labels, assignments = labels[labelled], clustering.assignments.numpy()[labelled]
        table = contingency(assignments, labels, len(clustering.sizes), len(self.pipeline.train.classes))
        accuracy, class_of = matched(table)
        nmi = float(normalized_mutual_info_score(labels, assignments))
        return Agreement(float(accuracy), nmi, float(adjusted_rand_score(labels, assignments)), table, class_of)


def _summary(clustering: Clustering, silhouette_mean: Optional[float], agreement: Optional[Agreement]) -> str:
    parts = [f"{len(clustering.sizes)} clusters"]
    if agreement is not None:
        parts += [
            f"accuracy {100 * agreement.accuracy:.2f} %",
            f"NMI {100 * agreement.nmi:.2f} %",
            f"ARI {100 * agreement.ari:.2f} %",
        ]
    parts.append(f"mean cosine with the centre {clustering.objective:.3f}")
    if silhouette_mean is not None:
        parts.append(f"silhouette {silhouette_mean:.3f}")
    return ", ".join(parts)


def _report(
    clustering: Clustering,
    number: Optional[NumberOfClusters],
    agreement: Optional[Agreement],
    classes: Sequence[str],
) -> str:
    lines = []
    if number is not None:
        lines.append(
            f"number of clusters found: {number.clusters}, confidence {number.confidence:.2f}: {number.explanation}"
        )
    sizes = [str(size) for size in clustering.sizes[:LONGEST].tolist()]
    more = len(clustering.sizes) - len(sizes)
    lines.append(f"cluster sizes: {', '.join(sizes)}" + (f" and {more} smaller ones" if more else ""))
    if agreement is not None and len(classes) <= WIDEST and len(clustering.sizes) <= LONGEST:
        lines.append(_confusion(agreement, classes))
    return "\n".join(lines)


def _confusion(agreement: Agreement, classes: Sequence[str]) -> str:
    from prettytable import PrettyTable

    shown = PrettyTable(["cluster", "matched with", *_distinct(classes)])
    shown.align = "r"
    for cluster, row in enumerate(agreement.table.tolist()):
        shown.add_row([cluster, _matched_class(agreement, cluster, classes), *row])
    return shown.get_string()


def _distinct(classes: Sequence[str]) -> list[str]:
    """Short names for the head of a table, which must differ."""
    short = [name if len(name) <= 12 else name[:11] + "…" for name in classes]
    return short if len({*short, "cluster", "matched with"}) == len(short) + 2 else [str(i) for i in range(len(short))]


def _matched_class(agreement: Agreement, cluster: int, classes: Sequence[str]) -> str:
    return classes[agreement.class_of[cluster]] if cluster in agreement.class_of else "-"


def _write_table(path: Path, clustering: Clustering, agreement: Optional[Agreement], classes: Sequence[str]) -> Path:
    """A line a cluster: its size, and with labels the class it is matched with and how many images of each class."""
    # names of classes may be names of folders that are not UTF-8: they are written byte for byte
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["cluster", "size", *(["matched_with", *classes] if agreement is not None else [])])
        for cluster, size in enumerate(clustering.sizes.tolist()):
            row = [cluster, size]
            if agreement is not None:
                row += [_matched_class(agreement, cluster, classes), *agreement.table[cluster].tolist()]
            writer.writerow(row)
    return path


def contingency(assignments: np.ndarray, labels: np.ndarray, clusters: int, classes: int) -> np.ndarray:
    """(K, C) int64: how many rows of each cluster are of each class."""
    table = np.zeros((clusters, classes), dtype=np.int64)
    np.add.at(table, (assignments, labels), 1)
    return table


def matched(table: np.ndarray) -> tuple[float, dict[int, int]]:
    """The best accuracy of a one-to-one matching of clusters and classes (Kuhn 1955), and the class of each cluster.

    If there are more clusters than classes, some clusters have no class and their rows count as wrong; and vice versa.

    Args:
        table: (K, C), from `contingency`.
    """
    rows, columns = linear_sum_assignment(table, maximize=True)
    return table[rows, columns].sum() / table.sum(), dict(zip(rows.tolist(), columns.tolist()))


def silhouette(features: Tensor, assignments: np.ndarray, seed: int) -> Optional[float]:
    """The mean silhouette (Rousseeuw 1987) by cosine distance, of `SILHOUETTE_ROWS` rows at most, drawn by the seed.

    None where there are not two clusters, or no two rows in one.

    Args:
        features: (N, D) unit rows on the CPU.
        assignments: (N,) int64.
    """
    rows = np.arange(len(assignments))
    if len(rows) > SILHOUETTE_ROWS:
        rows = np.sort(np.random.RandomState(seed % 2**32).permutation(len(rows))[:SILHOUETTE_ROWS])
    chosen = assignments[rows]
    if not 2 <= len(np.unique(chosen)) < len(rows):
        return None
    return float(silhouette_score(features[rows].numpy(), chosen, metric="cosine"))


def plot_number(number: NumberOfClusters, path: Path) -> Path:
    """Draw the criterion over K, with the number found and the threshold marked, into a PNG file. Returns its path."""
    from lib.figures import default_settings

    with default_settings():
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would need a display
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(8, 4.5), dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(number.candidates, number.criterion, marker="o", markersize=4, color="#4878a8")
        axes.axhline(number.threshold, color="#888888", linewidth=1)
        axes.axvline(number.clusters, color="#c44e52", linestyle="--")
        axes.set_xlabel("number of clusters K")
        axes.set_ylabel(number.criterion_name)
        axes.set_title(f"{number.clusters} clusters, confidence {number.confidence:.2f}", loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(path)
    return path
