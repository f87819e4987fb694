"""The network whose first filters whiten patches of the training images."""

import numpy as np
import torch

import models
from models import whitenet
from tests.helpers.runs import TINY


def images(count=60, side=8, seed=0):
    """Smooth coloured noise, whose patches are strongly correlated."""
    noise = torch.randn(count, 3, side + 4, side + 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1) * 4 + 0.3


def patches_of(pictures):
    """(n, 27) float64, every 3x3 patch, without torch's unfold."""
    values = pictures.double().numpy()
    side = values.shape[2] - 2
    found = [
        values[:, :, row : row + 3, column : column + 3].reshape(len(values), -1)
        for row in range(side)
        for column in range(side)
    ]
    return np.concatenate(found)


def test_filters_whiten_the_patches():
    network = models.build("whitenet", 16, "small", 8)
    network.fit_stem(images())
    filters = network.stem[0].weight.double().reshape(54, 27).numpy()
    np.testing.assert_array_equal(filters[27:], -filters[:27])
    patches = patches_of(images())
    variances = np.linalg.eigvalsh(np.cov(patches.T, bias=True))
    responses = np.cov((patches @ filters[:27].T).T, bias=True)
    expected = variances / (variances + 0.01 * variances.mean())
    np.testing.assert_allclose(responses, np.diag(expected), atol=2e-3)


def test_of_many_patches_an_even_sample_is_used(monkeypatch):
    monkeypatch.setattr(whitenet, "_PATCHES", 700)  # of 60 images with 36 patches, so that every third is taken
    network = models.build("whitenet", 16, "small", 8)
    network.fit_stem(images())
    found = network.stem[0].weight.double()[:27].reshape(27, 27).numpy()
    by_image = patches_of(images()).reshape(36, 60, 27).transpose(1, 0, 2).reshape(-1, 27)[::3]
    variances, directions = np.linalg.eigh(np.cov(by_image.T, bias=True))
    expected = (directions / np.sqrt(variances + 0.01 * variances.mean())).T
    np.testing.assert_allclose(np.abs((found @ expected.T) / (expected**2).sum(axis=1)), np.eye(27), atol=1e-3)


def test_equal_images_leave_finite_filters():
    network = models.build("whitenet", 16, "small", 8)
    network.fit_stem(torch.full((5, 3, 8, 8), 0.5))
    assert torch.isfinite(network.stem[0].weight).all()


def test_feature_maps_and_trained_parameters():
    network = models.build("whitenet", 16, "small", 16)
    outputs = network.stage_outputs(images(4, 16))
    assert {name: tuple(maps.shape[1:]) for name, maps in outputs.items()} == {
        "stem": (54, 8, 8), "layer1": (64, 8, 8), "layer2": (128, 4, 4), "fc": (16,),
    }  # fmt: skip
    means = [
        maps.detach()
        .numpy()
        .reshape(4, channels, side, maps.shape[2] // side, side, -1)
        .mean(axis=(3, 5))
        .reshape(4, -1)
        for maps, channels, side in ((outputs["layer1"], 64, 4), (outputs["layer2"], 128, 2))
    ]
    rows = np.hstack(means) @ network.fc.weight.detach().numpy().T + network.fc.bias.detach().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["fc"].detach().numpy(), rows, atol=1e-5)
    large = models.build("whitenet", 16, "large", 64)
    assert tuple(large.stage_outputs(images(2, 64))["stem"].shape[1:]) == (54, 16, 16)
    outputs["fc"].square().sum().backward()
    frozen = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert frozen == ["stem.0.weight"]


def test_a_run_fits_the_stem_to_its_images_and_does_not_train_it(tmp_path):
    """The stem is fitted to all images with the test transform, and a resumed run keeps it to the bit."""
    import datasets
    import main
    from datasets.image_set import limit
    from lib.checkpoint import io as checkpoint

    run = [*TINY, "--network", "whitenet", "--max-round", "1", "--no-report", "--sess-dir", str(tmp_path)]
    assert main.main([*run, "--session", "s"]) == 0
    assert main.main(["--resume", str(tmp_path / "s"), "--max-round", "2"]) == 0
    first, last = (
        checkpoint.load(tmp_path / "s" / "checkpoint" / name)["net"]["stem.0.weight"]
        for name in ("0000-00000.ckpt", "0001-00010.ckpt")
    )
    pixels = limit(datasets.load("digits", None, False).train, 40, 0).pixels
    network = models.build("whitenet", 16, "small", 8)
    network.fit_stem((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.3054) / 0.3760)
    torch.testing.assert_close(first, network.stem[0].weight.detach(), atol=1e-3, rtol=1e-3)
    assert torch.equal(first, last)
