"""The data sets: each reads its images and labels from a folder, a download or a package."""
