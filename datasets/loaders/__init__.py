"""Batches of images: from memory of the device, or from DataLoader workers."""
