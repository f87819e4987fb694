"""From images to the tensors a network takes: augmentation of one image or of a whole batch."""
