"""Augmentation of whole batches against torchvision on PIL images: each operation, then the drawn parameters."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as TF

from datasets.loaders.device import DeviceLoader, to_device
from datasets.transforms import batch as augment_batch
from datasets.transforms.batch import BRIGHTNESS, CONTRAST, HUE, SATURATION, Parameters, Recipe
from lib.distributed.world import Share
from lib.seeding import generator

RECIPE = Recipe((0.2, 1.0), (3 / 4, 4 / 3), (0.4, 0.4, 0.4, 0.4), 0.2, 0.5)


def pictures(count, height, width, seed=0):
    """uint8 (B, H, W, 3): smooth colours with some noise, full range."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(c).resize((width, height), Image.BICUBIC)) for c in coarse])
    noise = rng.integers(-12, 13, smooth.shape)
    return np.clip(smooth.astype(int) + noise, 0, 255).astype(np.uint8)


def as_batch(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def levels(images):
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) in 0..255, not rounded."""
    return images.permute(0, 2, 3, 1).numpy() * 255


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (8, 8, 8), (20, 30, 16), (40, 28, 9), (12, 12, 32)]
)
def test_crop_and_resize_equals_pil(height, width, size):
    """At most 1.1 levels apart: PIL rounds to whole levels after each of its two passes."""
    pixels = pictures(40, height, width)
    boxes = augment_batch.draw_boxes(40, height, width, RECIPE, torch.Generator().manual_seed(1))
    flips = torch.arange(40) % 2 == 1
    ours = levels(augment_batch.crop_resize(as_batch(pixels), boxes, flips, size))
    for picture, box, flip, result in zip(pixels, boxes.tolist(), flips, ours):
        theirs = TF.resized_crop(Image.fromarray(picture), *box, [size, size])
        theirs = TF.hflip(theirs) if flip else theirs
        assert np.abs(result - np.asarray(theirs, dtype=float)).max() <= 1.1


COLOUR_STEPS = [
    # which step, torchvision's function, factors, largest and mean difference allowed in levels
    (BRIGHTNESS, TF.adjust_brightness, np.linspace(0.6, 1.4, 20), 1.0, 0.6),
    (CONTRAST, TF.adjust_contrast, np.linspace(0.6, 1.4, 20), 1.3, 0.6),  # PIL rounds the mean grey
    (SATURATION, TF.adjust_saturation, np.linspace(0.6, 1.4, 20), 1.3, 0.6),  # PIL rounds the grey
]


@pytest.mark.parametrize(("step", "function", "values", "largest", "mean"), COLOUR_STEPS)
def test_a_blending_step_equals_pil(step, function, values, largest, mean):
    pixels = pictures(20, 16, 16, seed=2)
    factors = torch.full((20, 4), 9.0)  # what is not due must not be used
    factors[:, step] = torch.from_numpy(values).float()
    due = torch.full((20,), step)
    ours = levels(augment_batch.blend_colours(as_batch(pixels), due, factors))
    theirs = np.stack([np.asarray(function(Image.fromarray(p), v)) for p, v in zip(pixels, values)]).astype(float)
    assert np.abs(ours - theirs).max() <= largest
    assert np.abs(ours - theirs).mean() <= mean


def test_hue_equals_an_exact_turn_of_the_colour_wheel():
    import colorsys

    pixels = pictures(6, 5, 5, seed=3)
    shifts = torch.linspace(-0.4, 0.4, 6)
    ours = augment_batch.shift_hue(as_batch(pixels), shifts).permute(0, 2, 3, 1).numpy()
    for picture, shift, result in zip(pixels / 255.0, shifts.tolist(), ours):
        for rgb, turned in zip(picture.reshape(-1, 3), result.reshape(-1, 3)):
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            assert turned == pytest.approx(colorsys.hsv_to_rgb((h + shift) % 1.0, s, v), abs=1e-5)


def test_hue_is_near_pil():
    """PIL cuts the hue and the shift down to 255ths of the circle, 6 levels each in the steepest channel."""
    pixels = pictures(20, 16, 16, seed=4)
    shifts = np.linspace(-0.4, 0.4, 20)
    ours = levels(augment_batch.shift_hue(as_batch(pixels), torch.from_numpy(shifts).float()))
    theirs = np.stack([np.asarray(TF.adjust_hue(Image.fromarray(p), s)) for p, s in zip(pixels, shifts)]).astype(float)
    assert np.abs(ours - theirs).max() <= 13
    assert np.abs(ours - theirs).mean() <= 2.5


def test_greys_have_no_hue_to_turn():
    grey = torch.full((1, 3, 2, 2), 0.3)
    torch.testing.assert_close(augment_batch.shift_hue(grey, torch.tensor([0.37])), grey)


def test_grey_equals_pil():
    pixels = pictures(10, 16, 16, seed=5)
    ours = levels(augment_batch.to_grey(as_batch(pixels)).expand(10, 3, 16, 16))
    theirs = np.stack([np.asarray(Image.fromarray(p).convert("L"), dtype=float) for p in pixels])
    assert np.abs(ours[..., 0] - theirs).max() <= 0.51


def test_each_image_takes_its_steps_in_its_own_order():
    pixels = pictures(12, 16, 16, seed=6)
    drawn = augment_batch.draw(12, 16, 16, RECIPE, torch.Generator().manual_seed(3))
    ours = levels(augment_batch.colour_steps(as_batch(pixels), drawn.order, drawn.factors))
    functions = {
        BRIGHTNESS: TF.adjust_brightness, CONTRAST: TF.adjust_contrast,
        SATURATION: TF.adjust_saturation, HUE: TF.adjust_hue,
    }  # fmt: skip

    def mean_difference(orders):
        total = 0.0
        for picture, order, factors, result in zip(pixels, orders.tolist(), drawn.factors.tolist(), ours):
            image = Image.fromarray(picture)
            for step in order:
                image = functions[step](image, factors[step])
            total += np.abs(result - np.asarray(image, dtype=float)).mean()
        return total / len(pixels)

    assert len(set(map(tuple, drawn.order.tolist()))) > 4
    assert mean_difference(drawn.order) <= 2.5
    assert mean_difference(drawn.order.flip(1)) > 3.5  # another order is told apart


def test_a_whole_draw_equals_the_chain_of_torchvision_functions():
    pixels = pictures(8, 32, 32, seed=7)
    drawn = augment_batch.draw(8, 32, 32, RECIPE, torch.Generator().manual_seed(5))
    still = Parameters(drawn.boxes, drawn.flips, drawn.order, torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 8), drawn.greys)
    ours = levels(augment_batch.augment(as_batch(pixels), still, 32))
    for picture, box, flip, grey, result in zip(pixels, drawn.boxes.tolist(), drawn.flips, drawn.greys, ours):
        image = TF.resized_crop(Image.fromarray(picture), *box, [32, 32])
        image = TF.hflip(image) if flip else image
        image = TF.to_grayscale(image, 3) if grey else image
        assert np.abs(result - np.asarray(image, dtype=float)).max() <= 1.6


def quantiles_differ(ours, theirs):
    """The largest distance of the two empirical distributions (Kolmogorov-Smirnov), and the 0.1 % limit for it."""
    ours, theirs = np.sort(ours), np.sort(theirs)
    grid = np.concatenate([ours, theirs])
    gap = np.abs(
        np.searchsorted(ours, grid, "right") / len(ours) - np.searchsorted(theirs, grid, "right") / len(theirs)
    ).max()
    return gap, 1.95 * math.sqrt(1 / len(ours) + 1 / len(theirs))


def test_crops_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    image = Image.new("RGB", (32, 32))
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, RECIPE.scale, RECIPE.ratio) for _ in range(6000)])
    ours = augment_batch.draw_boxes(6000, 32, 32, RECIPE, torch.Generator().manual_seed(0)).numpy()
    for column in range(4):
        gap, allowed = quantiles_differ(ours[:, column], theirs[:, column])
        assert gap < allowed
    gap, allowed = quantiles_differ(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert gap < allowed
    gap, allowed = quantiles_differ(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])
    assert gap < allowed


def test_crops_stay_inside_oblong_images_and_fall_back_to_the_centre():
    narrow = Recipe((0.99, 1.0), (1.0, 1.0), (0, 0, 0, 0), 0.0, 0.0)
    boxes = augment_batch.draw_boxes(5, 10, 40, narrow, torch.Generator().manual_seed(0))
    assert boxes.tolist() == [[0, 15, 10, 10]] * 5  # no square of 99 % of the area fits: the central one is taken
    boxes = augment_batch.draw_boxes(500, 10, 40, RECIPE, torch.Generator().manual_seed(0))
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 10
    assert (boxes[:, 1] + boxes[:, 3]).max() <= 40


def test_colour_factors_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.4)
    theirs = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(4000)]
    factors = augment_batch.draw_factors(4000, RECIPE, torch.Generator().manual_seed(0)).numpy()
    orders = augment_batch.draw_orders(4000, torch.Generator().manual_seed(0))
    for column in range(4):
        gap, allowed = quantiles_differ(factors[:, column], np.array([float(t[1 + column]) for t in theirs]))
        assert gap < allowed
    # the 24 orders: chi-squared with 23 degrees of freedom, 0.1 % point 49.7
    counts = np.unique(orders.numpy() @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 4000 / 24) ** 2 / (4000 / 24)).sum() < 49.7


def test_hue_is_applied_equally_often_at_each_position_of_a_batch():
    places = torch.stack(
        [(augment_batch.draw_orders(5, generator(0, "x", batch)) == HUE).long().argmax(dim=1) for batch in range(2000)]
    )
    for position in range(5):  # each image on its own: 2000 draws, 500 +- 4 standard deviations of 19.4
        counts = torch.bincount(places[:, position], minlength=4)
        assert (counts - 500).abs().max() < 78


def test_flips_and_greys_come_as_often_as_asked():
    drawn = augment_batch.draw(20000, 8, 8, RECIPE, torch.Generator().manual_seed(0))
    assert drawn.flips.float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert drawn.greys.float().mean().item() == pytest.approx(0.2, abs=0.012)


def device_loader(pixels, recipe, size=32, seed=0):
    images = to_device(pixels, torch.device("cpu"))
    return DeviceLoader(images, size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), recipe, seed)


def test_test_images_are_only_normalised():
    pixels = pictures(5, 32, 32)
    ((images, indices),) = device_loader(pixels, None).batches([torch.tensor([4, 1])], ())
    assert indices.tolist() == [4, 1]
    expected = (pixels[[4, 1]] / 255.0 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_augmentation_depends_on_the_position_in_the_run():
    pixels, order = pictures(9, 8, 8), [torch.tensor([3, 1, 2]), torch.tensor([0, 8])]

    def served(seed, salt):
        return torch.cat([images for images, _ in device_loader(pixels, RECIPE, 8, seed).batches(order, salt)])

    assert torch.equal(served(1, (2, 5)), served(1, (2, 5)))
    assert not torch.equal(served(1, (2, 5)), served(1, (2, 6)))
    assert not torch.equal(served(1, (2, 5)), served(2, (2, 5)))


def test_hue_of_all_images_or_of_those_due_is_the_same():
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    due = torch.tensor([True, False, True, False, False, True, False, True, False])
    shift = torch.linspace(-0.5, 0.5, 9)
    some = augment_batch._turn_hue_of_those_due(images.clone(), due, shift)
    every = augment_batch._turn_hue_of_all(images, due, shift)
    torch.testing.assert_close(some, every, atol=1e-6, rtol=0)
    assert not torch.equal(some, images)


@pytest.mark.parametrize("share", [Share(0, 1), Share(1, 3)])
@pytest.mark.parametrize("start", [0, 5])
def test_batches_prepared_together_are_those_prepared_one_by_one(share, start, monkeypatch):
    """As on a GPU; the last group and the last batch are smaller."""
    loader, order = device_loader(pictures(90, 16, 16), RECIPE, 16), torch.randperm(90).split(20)
    order = (*order[:3], *order)
    one_by_one = list(loader.batches(order, (1, 2), share, start))
    monkeypatch.setattr(loader, "together", lambda order: 3)
    together = list(loader.batches(order, (1, 2), share, start))
    assert len(together) == len(one_by_one) == len(order) - start
    for (images, indices), (expected, expected_indices) in zip(together, one_by_one):
        assert torch.equal(indices, expected_indices)
        torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
