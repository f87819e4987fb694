"""The criterion for the number of clusters, as a picture."""

from pathlib import Path

from lib.clustering.number import NumberOfClusters


def plot_number(number: NumberOfClusters, path: Path) -> Path:
    """Draw the criterion over K, with the number found and the threshold marked, into a PNG file. Returns its path."""
    from lib.figures import as_shipped

    with as_shipped():
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: it would ask for a screen
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(number.candidates, number.criterion, marker="o", markersize=4, color="#4878a8")
        axes.axhline(number.threshold, color="#888888", linewidth=1)
        axes.axvline(number.clusters, color="#c44e52", linestyle="--")
        axes.set_xlabel("number of clusters K")
        axes.set_ylabel(number.criterion_name)
        axes.set_title(f"{number.clusters} clusters, confidence {number.confidence:.2f}", loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(path)
    return path
