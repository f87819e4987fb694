"""Transforms of images to input tensors, and augmentation: of one image, or of a whole batch."""
