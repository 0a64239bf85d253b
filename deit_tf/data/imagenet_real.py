"""ImageNet-ReaL: every right label of each validation image (Beyer et al. 2020,
reassessed-imagenet).
"""

import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from deit_tf.data.folders import Folder, all_images
from deit_tf.data.sources import Source

log = logging.getLogger(__name__)


def real_source(folder: Folder, file: Path) -> tuple[Source, list[frozenset[int]]]:
    """Open the validation images with the labels of real.json.

    Args:
        folder: Where the files ILSVRC2012_val_00000001.JPEG to 00050000.JPEG lie, or a part of
            them, in class folders or not; or as many files of other names as there are labels.
        file: real.json: a list of lists of class numbers, in the order of the files' names.
    Returns:
        The images that have a label, each with its place in the list as label; and the right
        classes by place.
    Raises:
        ValueError: If the file is no such list, or does not fit the images.
    """
    try:
        truth = [frozenset(map(int, labels)) for labels in json.loads(file.read_text())]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} must be a JSON list with a list of class numbers per image, as real.json."
        ) from error

    paths = sorted(all_images(folder), key=lambda path: path.name)
    numbers = [re.search(r"_val_(\d{8})$", path.stem) for path in paths]
    if paths and all(numbers):
        places = [
            int(number.group(1)) - 1 for number in numbers
        ]  # a part of the validation images is enough
    elif len(paths) == len(truth):
        places = list(range(len(paths)))
    else:
        raise ValueError(
            f"{file} tells of {len(truth)} images and {folder} has {len(paths)}, without "
            "ILSVRC2012_val_ and a number in all of their names."
        )
    if max(places) >= len(truth):
        raise ValueError(
            f"{file} tells of {len(truth)} images; {paths[np.argmax(places)].name} is beyond them."
        )

    pairs = zip(map(os.fsencode, paths), places, strict=True)
    labeled = [(file, place) for file, place in pairs if truth[place]]
    if not labeled:
        raise ValueError(f"{file} has no label for any image of {folder}.")
    files, labels = zip(*labeled, strict=True)

    def read(_):
        columns = (tf.constant(files), tf.constant(labels, tf.int64))
        pairs = tf.data.Dataset.from_tensor_slices(columns)
        return pairs.enumerate().map(
            lambda i, pair: {"index": i, "image": tf.io.read_file(pair[0]), "label": pair[1]}
        )

    log.info("%d of %d images have labels in %s", len(labeled), len(paths), file)
    return Source(str(folder), (), len(labeled), read, files=files), truth
