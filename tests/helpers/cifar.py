"""Small files in the format of CIFAR's, for torchvision."""

import hashlib
import pickle

import numpy as np

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar_pixels(count, first):
    """Image i has one colour, (first + i, 100, 200), but a black top left pixel."""
    pixels = np.zeros((count, 3, 32, 32), np.uint8)
    pixels[:, 0] = (first + np.arange(count))[:, None, None]
    pixels[:, 1:] = np.array([100, 200])[None, :, None, None]
    pixels[:, :, 0, 0] = 0
    return pixels


def write_cifar(kind, root):
    """Two images in each file that torchvision's `kind` lists.

    Returns:
        the attributes that its class must have to take these files for the originals.
    """
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    of_ten = kind.__name__ == "CIFAR10"
    classes = list(CIFAR10) if of_ten else [f"class{i:03}" for i in range(100)]

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def write_list(entries, first):
        written = []
        for place, (name, _) in enumerate(entries):
            data = cifar_pixels(2, first + 2 * place).reshape(2, 3072)
            content = {"data": data, "labels" if of_ten else "fine_labels": [place, 9 - place]}
            written.append([name, write(name, content)])
        return written

    return {
        "train_list": write_list(kind.train_list, 0),
        "test_list": write_list(kind.test_list, 50),
        "meta": {**kind.meta, "md5": write(kind.meta["filename"], {kind.meta["key"]: classes})},
    }
