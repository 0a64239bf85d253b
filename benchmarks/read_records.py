"""What a record of TensorFlow Datasets costs that is passed over, and one that is read by its
place: CPU milliseconds, without decoding its picture.

A builder of one JPEG file over and over is written as TFRecord, of which the records before a step
are passed over, and as ArrayRecord, of which none is.

    python benchmarks/read_records.py --records 2000
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_images

from deit_tf.config import DataConfig
from deit_tf.data import open_sources

SIZE, QUALITY, ROUNDS = (375, 500), 95, 2


class OnePicture(tfds.core.GeneratorBasedBuilder):
    """One file, as many times as asked for."""

    VERSION = tfds.core.Version("1.0.0")
    file, records = "", 0

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(self.records), "test": self._generate_examples(1)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": self.file, "label": i % 2}


def milliseconds(folder: Path, form: str, records: int) -> float:
    """CPU time per record to the last one, or of all of them by their places; the best round."""
    OnePicture(data_dir=folder / form, file_format=form).download_and_prepare()
    source, _ = open_sources(DataConfig("tfds:one_picture", data_dir=str(folder / form)))
    last = source.read(None).skip(records - 1) if form == "tfrecord" else source.read(None)

    best = float("inf")
    for _ in range(ROUNDS):
        before = time.process_time()
        for _ in last.batch(64):
            pass
        best = min(best, time.process_time() - before)
    return best / records * 1e3


def main() -> None:
    """Write both forms, read them, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=2000)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = load_sample_images().images[0][: SIZE[0], : SIZE[1]]
        Image.fromarray(photo).save(folder / "photo.jpg", quality=QUALITY)
        OnePicture.file, OnePicture.records = str(folder / "photo.jpg"), args.records
        length = os.path.getsize(OnePicture.file) / 1000

        for form, what in (("tfrecord", "passed over"), ("array_record", "read by its place")):
            cost = milliseconds(folder, form, args.records)
            print(f"{form}: {cost:.2f} ms of CPU for a record of {length:.0f} kB {what}")


if __name__ == "__main__":
    tf.config.set_visible_devices([], "GPU")
    main()
