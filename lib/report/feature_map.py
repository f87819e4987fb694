"""The features of a sample of images, laid out in a plane so that similar ones lie close together."""

import numpy as np

NEIGHBOURS = 30
"""t-SNE's perplexity: about how many neighbours each image is to be placed by."""
FEWEST = 30
"""With fewer images the two directions of largest spread (PCA) are shown."""


def layout(features: np.ndarray) -> tuple[str, np.ndarray]:
    """Places in the unit square.

    The same features give the same places: t-SNE begins at the PCA and computes on one thread.

    Args:
        features: (n, D) unit rows.

    Returns:
        `t-SNE` or `PCA`, and (n, 2) float64 from 0.03 to 0.97.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    if len(features) < FEWEST:
        return "PCA", _squared(_principal(centred))
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start = _principal(centred)
    start = start / max(start[:, 0].std(), 1e-12) * 1e-4  # as scikit-learn scales its own start
    perplexity = min(NEIGHBOURS, (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), learning_rate="auto", random_state=0)
    with threadpool_limits(1):
        return "t-SNE", _squared(tsne.fit_transform(features.astype(np.float32)).astype(np.float64))


def _principal(centred: np.ndarray) -> np.ndarray:
    """(n, 2): the coordinates along the two directions of largest spread, each pointing where its largest entry is."""
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(centred), 2))
    for axis, direction in enumerate(directions[:2]):
        places[:, axis] = centred @ direction * np.sign(direction[np.abs(direction).argmax()])
    return places


def _squared(places: np.ndarray) -> np.ndarray:
    """Moved and scaled into the unit square, both axes alike."""
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    extent = max((places.max(axis=0) - places.min(axis=0)).max(), 1e-12)
    return 0.5 + 0.94 * (places - middle) / extent
