"""TensorBoard files: scalars, histograms and pictures of a run and of each of its rounds, and the embedding projector.

Each round has an event file of its own beside that of the run, so that rounds can be compared in one chart.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
from PIL import Image

from lib.errors import one_line
from lib.logger.console import LOGGER

# tensorboardX is imported where it is used: it takes a second, which --no-log-tfb need not pay

log = logging.getLogger(LOGGER)

OVERVIEW, ANCHORS, IMAGES = "1_Overview", "2_Anchors", "3_Images"
"""Groups of charts that come before all others: TensorBoard sorts groups by their names."""

SPRITE_SIDE = 48
"""Pixels of a projector's thumbnail. 10,000 make a sheet of 4,800 x 4,800 pixels; browsers accept up to 8,192."""

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

_AT_START, _AT_END = slice(0, 2), slice(2, 3)
"""Summaries of the page HParams in tensorboardX's order: experiment and options of the run; the end of the run."""

_UNLABELLED_METRICS = ("Train/Loss", "Neighbours/Kept", "Neighbours/Cosine", "Neighbours/Entropy", "Clusters/Number")
_LABELLED_METRICS = ("Evaluate/Rank-1", "Evaluate/best_acc", "ANs/Consistency")


class TensorBoardWriter:
    """Writes under `tfboard/run` against the epoch of the run, and under `tfboard/round-R` against that of the round.

    Args:
        folder: of the event files, or None to write nothing.
        max_epoch: epochs in a round, for the steps of the whole run.
        after: (round, epoch) that was completed before; TensorBoard hides later steps in older files.
    """

    def __init__(self, folder: Optional[Path], max_epoch: int, after: tuple[int, int] = (0, 0)):
        self.folder = folder
        self.max_epoch = max_epoch
        self._after = after
        self._files: dict[str, EventFile] = {}
        self.projector: Optional[Projector] = None

    def start(self, options: Mapping[str, Any], labelled: bool) -> None:
        """Write the layout of the charts, and the options and metrics of the run for the HParams page.

        A resumed session keeps its first options: TensorBoard reads only those.
        """
        run = self._file("run")
        run.add(None, "custom_scalars", _layout(labelled))
        compared = {name: _cell(value) for name, value in options.items() if name not in _NOT_COMPARED}
        metrics = (*_LABELLED_METRICS, *_UNLABELLED_METRICS) if labelled else _UNLABELLED_METRICS
        run.add_hyperparameters(_AT_START, compared, dict.fromkeys(metrics, 0))
        run.flush()

    def epoch(self, record: dict[str, Any], best_of_round: Optional[float], best_of_run: Optional[float]) -> None:
        """Write the scalars of one epoch, from its line in metrics.jsonl, and the best accuracies so far."""
        scalars = {
            "Train/Loss": record["loss"],
            "Train/Learning_Rate": record["lr"],
            "Train/Images_per_second": record["images_per_second"],
            "Evaluate/Rank-1": record["knn_top1"],
            "Neighbours/Kept": record["neighbours_kept"],
            "Neighbours/Cosine": record["neighbour_cosine"],
            "Neighbours/Entropy": record["entropy"],
            "Neighbours/Entropy_of_anchors": record["anchor_entropy"],
            "Clusters/Number": None if record["clusters"] is None else len(record["clusters"]),
        }
        best = {"run": best_of_run}
        for name, file, step in self._files_of(record["round"], record["epoch"]):
            file.add_scalars(step, {**scalars, "Evaluate/best_acc": best.get(name, best_of_round)})
            if name == "run":
                file.add_scalars(step, _overview(scalars))

    def scalars(self, round_number: int, epoch: int, values: Mapping[str, Optional[float]]) -> None:
        """Write more numbers of an epoch, each as Evaluate/NAME."""
        for _, file, step in self._files_of(round_number, epoch):
            file.add_scalars(step, {f"Evaluate/{key}": value for key, value in values.items()})

    def discovery(
        self, round_number: int, anchors: int, consistency: Optional[float], entropy: Optional[np.ndarray]
    ) -> None:
        """Write the discovery of a round: number of anchors, consistency, and the histogram of entropies (N,)."""
        found = {"ANs/Number": anchors, "ANs/Consistency": consistency}
        for name, file, step in self._files_of(round_number, 0):
            file.add_scalars(step, found)
            if name == "run":
                file.add_scalars(step, _overview(found))
            if entropy is not None:
                file.add(step, "histogram", "ANs/Entropy", entropy, _histogram_edges())

    def bank_statistics(self, round_number: int, epoch: int, entropy: np.ndarray, cosine: np.ndarray) -> None:
        """Write histograms of entropy and of the distance to the nearest neighbour, 1 - cosine; (S,) both."""
        step = round_number * self.max_epoch + epoch
        for name, values in (("Entropy", entropy), ("Distance_to_nearest", 1 - cosine)):
            self._file("run").add(step, "histogram", f"{IMAGES}/{name}", values, _histogram_edges())

    def anchors(self, round_number: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures of anchors and their neighbours at the start of a round.

        Args:
            pictures: (H, W, 3) uint8 by the part of the anchors, e.g. `lowest` for those of lowest entropy; in order.
        """
        step = round_number * self.max_epoch
        for number, (part, picture) in enumerate(pictures.items(), 1):
            tag = f"{ANCHORS}/{number}_{part}_entropy"
            self._file("run").add(step, "image", tag, picture, dataformats="HWC")

    def thumbnails(self, squares: np.ndarray) -> None:
        """Write the thumbnails of the images that `embeddings` shows, (S, SPRITE_SIDE, SPRITE_SIDE, 3) uint8."""
        if self.folder is not None:
            with self._drop_projector_on_error():
                self.projector = Projector(self.folder / "run", squares)

    def embeddings(self, name: str, features: np.ndarray, about: Mapping[str, Sequence[str]]) -> None:
        """Write features (S, D) for the projector; see `Projector.add`. Call `thumbnails` before."""
        if self.projector is not None:
            with self._drop_projector_on_error():
                self.projector.add(name, features, about)

    def finish(self) -> None:
        """Write the end of the run for the HParams page."""
        self._file("run").add_hyperparameters(_AT_END)

    def close(self) -> None:
        """Flush and close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _files_of(self, round_number: int, epoch: int) -> Iterator[tuple[str, "EventFile", int]]:
        """(name, file, step) of the event files of an epoch, for the run and for its round; flushed after use."""
        for name, step in (("run", round_number * self.max_epoch + epoch), (f"round-{round_number}", epoch)):
            file = self._file(name)
            yield name, file, step
            file.flush()

    def _file(self, name: str) -> "EventFile":
        if name not in self._files:
            path = None if self.folder is None else self.folder / name
            purge_step = self._first_step(name) if path is not None and path.exists() else None
            self._files[name] = EventFile(path, purge_step)
        return self._files[name]

    def _first_step(self, name: str) -> int:
        """The first step that this run, perhaps resumed, writes to a file."""
        round_number, epoch = self._after
        if name == "run":
            return round_number * self.max_epoch + epoch + 1
        return epoch + 1 if name == f"round-{round_number}" else 0

    @contextmanager
    def _drop_projector_on_error(self) -> Iterator[None]:
        """If writing fails within it, logs a warning and drops the projector."""
        try:
            yield
        except OSError as error:
            self.projector = None
            log.warning("the projector's files can no longer be written: %s; the run continues without", error)


class EventFile:
    """One of TensorBoard's event files. If writing fails, it warns once and writes no more.

    On a full disk the thread of tensorboardX's SummaryWriter ends with a traceback, and the run waits for it forever.
    This class writes in the calling thread.

    Args:
        folder: of the file, or None to write nothing.
        purge_step: TensorBoard hides this step and later ones in older files of the folder.
    """

    def __init__(self, folder: Optional[Path], purge_step: Optional[int] = None):
        self._folder = folder
        self._writer: Any = None
        if folder is None:
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        with self._drop_file_on_error():
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
        if purge_step is not None:
            self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: Optional[int], kind: str, *values: Any, **settings: Any) -> None:
        """Write a summary: `kind` is the function of tensorboardX.summary that makes it of the values."""
        if self._writer is not None:
            from tensorboardX import summary

            self._write(step, summary=getattr(summary, kind)(*values, **settings))

    def add_scalars(self, step: int, values: Mapping[str, Optional[float]]) -> None:
        """Write numbers by their tags; those that are None are left out."""
        for tag, value in values.items():
            if value is not None:
                self.add(step, "scalar", tag, value)

    def add_hyperparameters(self, parts: slice, options: Optional[dict] = None, metrics: Optional[dict] = None) -> None:
        """Write the parts of the page HParams: `_AT_START` options and the tags of metrics, `_AT_END` the end."""
        if self._writer is not None:
            from tensorboardX.summary import hparams

            for part in hparams(options or {}, metrics or {})[parts]:
                self._write(None, summary=part)

    def flush(self) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            with self._drop_file_on_error():
                self._writer.flush()

    def close(self) -> None:
        """Flush and close the file; nothing is written after."""
        if self._writer is not None:
            with self._drop_file_on_error():
                self._writer.close()
        self._writer = None

    def _write(self, step: Optional[int], **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is not None:
            with self._drop_file_on_error():
                self._writer.write_event(Event(wall_time=time.time(), step=step, **content))

    @contextmanager
    def _drop_file_on_error(self) -> Iterator[None]:
        """If writing fails within it, logs a warning and drops the file."""
        try:
            yield
        except OSError as error:
            self._writer = None
            log.warning(
                "TensorBoard files in %s can no longer be written: %s; the run continues without",
                self._folder,
                error.strerror or error,
            )


class Projector:
    """Writes `projector/` and projector_config.pbtxt, which lists its contents.

    Args:
        folder: of the run's event files.
        squares: (S, SPRITE_SIDE, SPRITE_SIDE, 3) uint8, one for each image that is shown.
    """

    def __init__(self, folder: Path, squares: np.ndarray):
        self._folder = folder
        self._files = folder / "projector"
        self._files.mkdir(parents=True, exist_ok=True)
        _sheet(squares).save(self._files / f"thumbnails-{len(squares)}.png")

    def add(self, name: str, features: np.ndarray, about: Mapping[str, Sequence[str]]) -> None:
        """Write features; they replace those of the same name.

        Args:
            name: a plain word.
            features: (S, D).
            about: columns of S texts each, by their names.
        """
        np.savetxt(self._files / f"{name}.tsv", features, fmt="%.5g", delimiter="\t")
        rows = list(zip(*about.values()))
        if len(about) > 1:  # the format has no heading for a single column
            rows.insert(0, tuple(about))
        text = "".join("\t".join(map(_plain, row)) + "\n" for row in rows)
        (self._files / f"{name}-about.tsv").write_text(text, encoding="utf-8")
        self._list()

    def _list(self) -> None:
        """Write projector_config.pbtxt, with the newest first: the page opens with the first name."""
        from google.protobuf import text_format
        from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

        config = ProjectorConfig()
        about = sorted(self._files.glob("*-about.tsv"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for number, path in enumerate(about, 1):
            name = path.name[: -len("-about.tsv")]
            entry = config.embeddings.add()
            entry.tensor_name = f"{number:03d}-{name}"
            entry.tensor_path = f"projector/{name}.tsv"
            entry.metadata_path = f"projector/{path.name}"
            lines = path.read_text(encoding="utf-8").splitlines()
            images = len(lines) - ("\t" in lines[0])  # without the heading, which a single column lacks
            sheet = f"thumbnails-{images}.png"  # images are drawn by their number alone
            if (self._files / sheet).exists():
                entry.sprite.image_path = f"projector/{sheet}"
                entry.sprite.single_image_dim.extend([SPRITE_SIDE, SPRITE_SIDE])
        (self._folder / "projector_config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def _sheet(squares: np.ndarray) -> Image.Image:
    """All thumbnails in one square picture, row by row."""
    across = math.ceil(math.sqrt(len(squares)))
    whole = np.full((across * across, SPRITE_SIDE, SPRITE_SIDE, 3), 255, dtype=np.uint8)
    whole[: len(squares)] = squares
    grid = whole.reshape(across, across, SPRITE_SIDE, SPRITE_SIDE, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(across * SPRITE_SIDE, across * SPRITE_SIDE, 3))


def _plain(cell: str) -> str:
    """The text without characters that would end a cell or a line; a file's name may hold any."""
    return "".join(letter if letter.isprintable() else " " for letter in cell)


def _histogram_edges() -> np.ndarray:
    """Edges of bins that grow by a tenth, from 1e-12 to 1e20 and likewise below 0, as TensorFlow has them."""
    above = 1e-12 * 1.1 ** np.arange(np.ceil(np.log(1e32) / np.log(1.1)))
    return np.concatenate([-above[::-1], [0.0], above])


def _overview(scalars: Mapping[str, Optional[float]]) -> dict[str, Optional[float]]:
    """The scalars of the overview, which are only in the event file of the whole run.

    Under their usual tags a chart shows the run and all rounds at once.
    """
    return {f"{OVERVIEW}/{short}": scalars[tag] for short, tag in _IN_OVERVIEW.items() if tag in scalars}


def _layout(labelled: bool) -> dict[str, Any]:
    """The charts of the page Custom Scalars."""

    def chart(*names: str) -> list[Any]:
        return ["Multiline", [f"{OVERVIEW}/{name}$" for name in names]]

    by_labels = {"kNN accuracy": chart("2_kNN_accuracy")} if labelled else {}
    consistency = {"anchors whose neighbours have their label": chart("7_Consistency")} if labelled else {}
    kept = "share of images whose nearest neighbour is that of the round before"
    return {
        "Training": {**by_labels, "loss": chart("1_Loss"), kept: chart("3_Nearest_neighbour_kept")},
        "Neighbourhoods": {
            **consistency,
            "cosine to the nearest neighbour": chart("4_Cosine_to_nearest"),
            "entropy, of all images and of anchors": chart("5_Entropy", "6_Entropy_of_anchors"),
            "clusters": chart("8_Clusters"),
        },
        "Run (each round also from its own start)": {
            "anchors": ["Multiline", ["ANs/Number$"]],
            "learning rate": ["Multiline", ["Train/Learning_Rate$"]],
            "images per second": ["Multiline", ["Train/Images_per_second$"]],
        },
    }


def _cell(value: Any) -> Any:
    """A value in the table of HParams. Lists and options that may be None become texts, so that a column has one type.

    TensorBoard's files hold only UTF-8; `one_line` replaces other bytes of paths.
    """
    return value if isinstance(value, (bool, int, float)) else one_line(value)
