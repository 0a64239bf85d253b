"""Files that say which labels each picture has, and builders that do: read right, or refused by
line."""

import json
import logging

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deit_tf.config import AugmentConfig, DataConfig
from deit_tf.data import ImageProcessor, eval_dataset, open_sources, train_dataset
from deit_tf.data.class_weights import class_weights, images_of_classes
from deit_tf.data.label_field import multi_hot
from deit_tf.data.sources import open_whole

ROWS = [("a/0.png", ["dog", "boat"]), ("a/1.png", []), ("2.png", ["dog"]), ("3.png", ["cat"])]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    for i, (name, _) in enumerate(ROWS):
        Image.fromarray(np.full((9, 8, 3), 40 * i, np.uint8)).save(tmp_path / name)
    return tmp_path


def write(folder, kind, splits=("train", "val", "train", "train")):
    """The same labels as CSV or JSON lines."""
    file = folder / f"labels.{kind}"
    rows = [(*row, split) for row, split in zip(ROWS, splits, strict=True)]
    if kind == "csv":
        lines = ["image,labels,split"] + [f'{i},"{"|".join(c)}",{s}' for i, c, s in rows]
    else:
        lines = [json.dumps({"image": i, "labels": c, "split": s}) for i, c, s in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_both_forms_say_the_same(folder, kind):
    train, held_out = open_sources(DataConfig(str(write(folder, kind))))
    assert train.class_names == held_out.class_names == ("boat", "cat", "dog")
    assert train.multilabel and (train.size, held_out.size) == (3, 1)
    items = list(train.read(None).as_numpy_iterator())
    assert [item["label"].tolist() for item in items] == [[1, 0, 1], [0, 0, 1], [0, 1, 0]]
    assert train.counts.tolist() == [1, 1, 2]
    (item,) = held_out.read(None).as_numpy_iterator()
    assert item["label"].tolist() == [0, 0, 0]  # none of them


def test_without_splits_a_share_is_held_out_by_name(folder):
    file = folder / "labels.csv"
    file.write_text("image,labels\n" + "".join(f"{i},{'|'.join(c)}\n" for i, c in ROWS))
    sources = open_sources(DataConfig(str(file), holdout=0.5))
    assert sum(source.size for source in sources) == 4 and sources[1].size >= 1
    assert [source.size for source in open_sources(DataConfig(str(file), holdout=0.5))] == [
        source.size for source in sources
    ]
    assert open_whole(DataConfig(str(file))).size == 4


def test_a_label_that_is_held_out_alone_is_named(folder, caplog):
    file = write(folder, "csv", splits=("train", "train", "train", "val"))
    with caplog.at_level(logging.WARNING):
        train, _ = open_sources(DataConfig(str(file)))
    assert train.class_names == ("boat", "cat", "dog")
    assert "No picture to train on" in caplog.text and "cat" in caplog.text


def test_a_picture_that_does_not_decode_is_left_out(folder, caplog):
    (folder / "2.png").write_bytes(b"none")
    with caplog.at_level(logging.WARNING):
        train, _ = open_sources(DataConfig(str(write(folder, "csv"))))
    assert train.size == 2 and "2.png" in caplog.text


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "file,labels\n", "begins with the names of its columns, `image`, `labels`"),
        ("a.csv", "image,labels\n2.png,dog,x\n", "Line 2 of .* another number of cells"),
        ("a.csv", "image,labels\n2.png,dog||cat\n", "Line 2 of .*A class name is text"),
        ("a.csv", "image,labels\n2.png,a\n./2.png,b\n", "Line 3 of .* a second time, after Line 2"),
        ("a.csv", "image,labels\n../2.png,dog\n", "lies in the folder of the file or below"),
        ("a.csv", "image,labels,split\n2.png,dog,all\n", "`split` is train or val. Received: 'all"),
        ("a.csv", 'image,labels\n"2.png,dog\n', "is no CSV at line 2 or after"),
        ("a.csv", b"image,labels\n2.png,\xff\n", "must be text in UTF-8"),
        ("a.jsonl", '{"image": "2.png"}\n', "Line 1 of .* with `image` and `labels`"),
        ("a.jsonl", '\n{"image": "2.png"\n', "Line 2 of .* is no JSON"),
        ("a.jsonl", '{"image": "2.png", "labels": "dog"}', "`labels` is a list of class names"),
        ("a.jsonl", '{"image": 2, "labels": []}', "`image` is a path. Received: '2'"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(folder, name, text, message):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        open_sources(DataConfig(str(file)))


def test_what_is_not_there_is_named(folder):
    with pytest.raises(FileNotFoundError, match="file of labels that is not there"):
        open_sources(DataConfig(str(folder / "none.csv")))
    (folder / "a.csv").write_text("image,labels\n2.png,dog\ngone.png,cat\n")
    with pytest.raises(FileNotFoundError, match="names 1 pictures of 2 that are not there: .*gone"):
        open_sources(DataConfig(str(folder / "a.csv")))


def test_a_store_and_a_folder_that_is_called_so(folder, tmp_path):
    with pytest.raises(ValueError, match="lie on this machine, not on a store.*gs://b/labels.csv"):
        open_sources(DataConfig("gs://b/labels.csv"))
    for name in ("cat", "dog"):
        (tmp_path / "old.csv" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "old.csv" / name / f"{i}.png")
    assert open_sources(DataConfig(str(tmp_path / "old.csv")))[0].class_names == ("cat", "dog")


def test_labels_reach_the_batches_as_they_are(folder):
    config = DataConfig(str(write(folder, "csv")), batch_size=3)
    train, held_out = open_sources(config)
    augment = AugmentConfig("none")
    batches = train_dataset(train, config, augment, ImageProcessor(8), epochs=1)
    _, labels = next(iter(batches))
    assert labels.dtype == tf.float32 and sorted(labels.numpy().sum(-1)) == [1, 1, 2]
    _, labels = next(iter(eval_dataset(held_out, config, ImageProcessor(8))))
    assert labels.shape == (1, 3)
    with pytest.raises(ValueError, match="`augment.label_smoothing` spreads one label"):
        smoothed = AugmentConfig("none", label_smoothing=0.1)
        train_dataset(train, config, smoothed, ImageProcessor(8), epochs=1)


def test_a_class_named_twice_is_there_once():
    assert multi_hot(tf.constant([2, 0, 2], tf.int64), 4).numpy().tolist() == [1, 0, 1, 0]
    assert multi_hot(tf.constant([], tf.int64), 2).numpy().tolist() == [0, 0]


def test_balanced_weights_are_those_of_scikit_learn_and_torch(folder):
    from sklearn.utils.class_weight import compute_class_weight

    digits, _ = open_sources(DataConfig("digits"))
    labels = [int(item["label"]) for item in digits.read(None).as_numpy_iterator()]
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    np.testing.assert_allclose(class_weights("balanced", digits), expected, rtol=1e-6)
    assert class_weights(None, digits) is None
    assert class_weights([1.0] * 10, digits).tolist() == [1] * 10

    train, _ = open_sources(DataConfig(str(write(folder, "csv"))))
    # torch's pos_weight: images without the class over those with it
    np.testing.assert_allclose(class_weights("balanced", train), [2, 2, 0.5])


def test_a_class_without_images_has_no_balanced_weight(folder):
    file = write(folder, "csv", splits=("train", "train", "train", "val"))
    train, _ = open_sources(DataConfig(str(file)))
    with pytest.raises(ValueError, match="balanced needs images of each class.*cat"):
        class_weights("balanced", train)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """The folder of a builder with labels in a sequence, and in a sequence of objects."""
    tfds = pytest.importorskip("tensorflow_datasets")
    label = tfds.features.ClassLabel(names=["a", "b", "c"])

    class Scenes(tfds.core.GeneratorBasedBuilder):
        """Four pictures."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "labels": tfds.features.Sequence(label),
                "objects": tfds.features.Sequence({"label": label, "size": np.int64}),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                objects = [{"label": 2, "size": 1}] * i
                image = np.full((9, 8, 3), 20 * i, np.uint8)
                yield i, {"image": image, "labels": list(range(i)), "objects": objects}

    folders = {}
    for form in ("tfrecord", "array_record"):
        folders[form] = tmp_path_factory.mktemp(form)
        Scenes(data_dir=folders[form], file_format=form).download_and_prepare()
    return folders


@pytest.mark.parametrize("form", ["tfrecord", "array_record"])
@pytest.mark.parametrize("field, counts", [(None, [3, 2, 1]), ("objects/label", [0, 0, 3])])
def test_sequences_of_tensorflow_datasets(builder, form, field, counts):
    config = DataConfig("tfds:scenes", data_dir=str(builder[form]), label_field=field)
    train, _ = open_sources(config)
    assert train.multilabel and train.class_names == ("a", "b", "c")
    assert images_of_classes(train).tolist() == counts


def test_a_field_without_labels_is_refused(builder):
    config = DataConfig("tfds:scenes", data_dir=str(builder["tfrecord"]), label_field="image")
    with pytest.raises(ValueError, match="`data.label_field` says.*label_field='image'.*objects"):
        open_sources(config)
