"""The data sets: from a folder or a download to images and labels."""
