"""Evaluation, prediction and conversion, as a user runs them: every form of a model, every kind of
label file."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import deit_tf
from deit_tf.cli import main
from deit_tf.evaluation.evaluate import evaluate
from deit_tf.evaluation.predict import open_model, run_above
from deit_tf.evaluation.single_label import with_probabilities
from deit_tf.exporting.saved_model import export_saved_model
from deit_tf.exporting.tflite import export_tflite
from deit_tf.runs import class_order, load_run

CONFIG = Path(__file__).parents[2] / "configs" / "demo_digits.yaml"
IMAGES = 200


def write_digits(folder, name=str):
    scans = load_digits()
    for i in range(IMAGES):
        file = folder / name(scans.target[-1 - i]) / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(scans.images[-1 - i] * 15.9375)).save(file)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two epochs, its exports, and 200 images that it was not trained on."""
    folder = tmp_path_factory.mktemp("made")
    run = folder / "run"
    main(
        [
            "train",
            "--config",
            str(CONFIG),
            "--epochs",
            "2",
            "--optim.warmup_epochs",
            "0.5",
            "--distill.kind",
            "none",
            "--data.batch_size",
            "64",
            "--model.depth",
            "1",
            "--out",
            str(run),
        ]
    )
    loaded = load_run(run)
    export_saved_model(
        loaded.model, run / "export", processor=loaded.processor, labels=loaded.labels, name="s"
    )
    export_tflite(loaded.model, run / "export" / "student.tflite", images=loaded.samples)
    write_digits(folder / "images")
    return folder


def rows(file):
    with file.open() as lines:
        return list(csv.reader(lines))


def test_all_forms_of_a_model_agree_and_the_counts_add_up(made, tmp_path):
    forms = ["run", "run/student.keras", "run/export/s/1", "run/export/student.tflite"]
    figures = [
        evaluate(
            str(made / form), source=str(made / "images"), batch_size=64, out=str(tmp_path / str(i))
        )
        for i, form in enumerate(forms)
    ]
    assert (
        0.2 < figures[0]["top1"] < 1
    )  # it has learnt something, and there is something to confuse
    for i, one in enumerate(figures):
        assert (one["images"], one["top1"], one["top5"]) == (
            IMAGES,
            figures[0]["top1"],
            figures[0]["top5"],
        )
        assert one["protocol"] == "own" and "center crop 16 x 16" in one["preprocessing"]
        confusion = np.array(
            [row[1:] for row in rows(tmp_path / str(i) / "confusion.csv")[1:]], int
        )
        per_class = [row[1:3] for row in rows(tmp_path / str(i) / "per_class.csv")[1:]]
        assert confusion.sum() == IMAGES and np.trace(confusion) == round(IMAGES * one["top1"])
        assert (
            np.array(per_class, int).tolist()
            == np.c_[confusion.sum(1), np.diag(confusion)].tolist()
        )
        for name in ("confusion", "reliability"):
            assert Image.open(tmp_path / str(i) / f"{name}.png").size[0] > 300
        assert json.loads((tmp_path / str(i) / "evaluation.json").read_text()) == one
    # Keras and a SavedModel give both heads, a .tflite file the mean alone.
    assert figures[0]["top1_dist"] == figures[2]["top1_dist"] and "top1_dist" not in figures[3]
    assert "top1_probabilities" in figures[2]


def test_a_spreadsheet_runs_no_class_name_as_a_formula(tmp_path):
    names = ["+1", "=HYPERLINK(1)", "@x", "cat"]
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / name / "a.png")
    deit_tf.create_model("deit_test", num_classes=4).save(tmp_path / "model.keras")
    source, out = str(tmp_path / "images"), str(tmp_path / "out")
    evaluate(str(tmp_path / "model.keras"), source=source, out=out)
    safe = ["'+1", "'=HYPERLINK(1)", "'@x", "cat"]
    assert [row[0] for row in rows(tmp_path / "out" / "per_class.csv")[1:]] == safe
    head, *below = rows(tmp_path / "out" / "confusion.csv")
    assert head[1:-1] == [row[0] for row in below] == safe


def test_the_mean_of_probabilities_is_not_that_of_logits():
    logits = {"cls": np.float32([[4, 0, 0]]), "dist": np.float32([[-6, 2, 1]])}
    both = with_probabilities({"mean": (logits["cls"] + logits["dist"]) / 2, **logits})
    assert both["mean"].argmax() == 1 and both["probabilities"].argmax() == 0
    assert both["probabilities"].sum() == pytest.approx(1)


def test_each_number_is_printed_with_its_protocol(made, capsys):
    main(["evaluate", str(made / "run"), "--source", str(made / "images"), "--protocol", "timm"])
    text = capsys.readouterr().out
    assert "short side 17" in text and text.count("(timm)") == 8 and text.count("; 95 %: ") == 2
    main(
        [
            "evaluate",
            str(made / "run"),
            "--source",
            str(made / "images"),
            "--protocol",
            "huggingface",
            "--json",
        ]
    )
    figures = json.loads(capsys.readouterr().out)
    assert (
        figures["protocol"] == "huggingface" and "squashed to 18 x 18" in figures["preprocessing"]
    )
    assert figures["images_per_second"] > 0


REPLICAS = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from deit_tf.evaluation.evaluate import evaluate
assert tf.distribute.MirroredStrategy().num_replicas_in_sync == 2
print(json.dumps(evaluate(sys.argv[1], source=sys.argv[2], batch_size=67, strategy="mirrored")))
"""


def test_two_replicas_count_as_one(made):
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS, str(made / "run"), str(made / "images")],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    assert done.returncode == 0, done.stderr
    spread = json.loads(done.stdout.strip().splitlines()[-1])
    # 200 images in batches of 67: the last has 66, the others do not halve.
    alone = evaluate(str(made / "run"), source=str(made / "images"), batch_size=67)
    del spread["images_per_second"], alone["images_per_second"]
    assert spread == alone and alone["images"] == IMAGES


def test_replicas_are_for_keras_models(made, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", str(made / "run/export/student.tflite"), "--strategy", "mirrored"])
    assert "`strategy` spreads a Keras model" in capsys.readouterr().err


def test_a_model_without_logits_is_refused(tmp_path):
    deit_tf.create_masked_model("deit_test").save(tmp_path / "masked.keras")
    with pytest.raises(ValueError, match="is no classifier"):
        open_model(str(tmp_path))


def test_class_orders():
    words = ("ant", "bee", "cat")
    assert class_order(("cat", "ant"), words, 3) == [2, 0]
    assert class_order(("0", "1", "10"), None, 11) == [0, 1, 10]
    wnids = tuple(f"n0000000{i}" for i in range(3))
    assert class_order(wnids, words, 3) == class_order(words, None, 3) == [0, 1, 2]
    assert class_order(("crane", "crane"), ("crane", "crane"), 2) == [0, 1]
    for names, labels, message in (
        (("dog",), words, "classes of the data: dog"),
        (wnids[:2], None, "2 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            class_order(names, labels, 3)


def test_folders_named_by_number_are_in_the_order_of_numbers(tmp_path):
    model = deit_tf.create_model("deit_test", num_classes=12)
    bias = np.zeros(12, np.float32)
    bias[10] = 9
    for head in ("head", "head_dist"):
        model.get_layer(head).bias.assign(bias)
    model.save(tmp_path / "model.keras")
    for name, count in (("2", 1), ("10", 3)):
        (tmp_path / "v2" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32)).save(tmp_path / "v2" / name / f"{i}.png")
    figures = evaluate(
        str(tmp_path / "model.keras"), source=str(tmp_path / "v2"), out=str(tmp_path / "out")
    )
    assert figures["top1"] == figures["top1_cls"] == 3 / 4
    # Sorted as text 10 comes before 2, and an answer that the data has no class for is `other`.
    assert rows(tmp_path / "out" / "confusion.csv")[1:] == [
        ["10", "3", "0", "0"],
        ["2", "1", "0", "0"],
    ]


def test_a_split_of_tensorflow_datasets(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Matched(tfds.core.GeneratorBasedBuilder):
        """Pictures for evaluation alone, with wnids for names, as imagenet_v2 has them."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=[f"n0000000{i}" for i in range(4)])
            features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(5):
                yield i, {"image": np.full((9, 8, 3), 20 * i, np.uint8), "label": min(i, 3)}

    Matched(data_dir=tmp_path, version="1.0.0").download_and_prepare()
    model = deit_tf.create_model("deit_test", num_classes=4)
    for head in ("head", "head_dist"):
        model.get_layer(head).bias.assign([0, 0, 0, 9])
    model.save(tmp_path / "model.keras")
    figures = evaluate(
        str(tmp_path / "model.keras"), source="tfds:matched", split="test", data_dir=str(tmp_path)
    )
    assert (figures["images"], figures["top1"], figures["top5"]) == (5, 2 / 5, 1)


@pytest.mark.parametrize("setting", ["split", "data_dir"])
def test_what_is_for_tfds_alone_is_refused_elsewhere(tmp_path, setting):
    deit_tf.create_model("deit_test", num_classes=10).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=f"`{setting}` is for TFDS alone"):
        evaluate(str(tmp_path / "model.keras"), source="digits", **{setting: "train"})


def real_images(folder, names):
    folder.mkdir()
    for name in names:
        Image.new("RGB", (32, 32)).save(folder / name, "JPEG")
    return folder


def test_real_labels(tmp_path):
    model = deit_tf.create_model("deit_test", num_classes=10)
    bias = np.arange(10, dtype=np.float32) * 9
    for head in ("head", "head_dist"):
        model.get_layer(head).bias.assign(bias)  # it says 9, then 8, and so on
    model.save(tmp_path / "model.keras")
    (tmp_path / "real.json").write_text("[[9], [], [1, 9], [3], [5]]")
    some = real_images(tmp_path / "some", [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3, 5)])
    arguments = dict(source=str(some), real_labels=str(tmp_path / "real.json"))
    figures = evaluate(str(tmp_path / "model.keras"), **arguments)
    assert (figures["images"], figures["top1"], figures["top5"]) == (3, 2 / 3, 1)
    every = real_images(tmp_path / "every", [f"{i}.jpg" for i in range(5)])
    figures = evaluate(str(tmp_path / "model.keras"), **arguments | {"source": str(every)})
    assert (figures["images"], figures["top1"], figures["top5"]) == (4, 2 / 4, 3 / 4)
    (every / "4.jpg").unlink()
    with pytest.raises(ValueError, match="tells of 5 images and .* has 4"):
        evaluate(str(tmp_path / "model.keras"), **arguments | {"source": str(every)})
    real_images(tmp_path / "beyond", ["ILSVRC2012_val_00000006.JPEG"])
    with pytest.raises(ValueError, match="ILSVRC2012_val_00000006.JPEG is beyond"):
        evaluate(str(tmp_path / "model.keras"), **arguments | {"source": str(tmp_path / "beyond")})
    with pytest.raises(ValueError, match="has no `out`"):
        evaluate(str(tmp_path / "model.keras"), **arguments, out=str(tmp_path / "out"))
    (tmp_path / "real.json").write_text("{")
    with pytest.raises(ValueError, match="must be a JSON list"):
        evaluate(str(tmp_path / "model.keras"), **arguments)


def test_predict_prints_names_and_probabilities(made, capsys):
    images = sorted(map(str, (made / "images" / "7").iterdir()))[:2]
    main(["predict", str(made / "run"), *images, "--top", "3", "--json"])
    results = json.loads(capsys.readouterr().out)
    assert [result["image"] for result in results] == images
    run = load_run(made / "run")
    logits = np.asarray(run.model(run.processor.batch(images)))
    for result, row in zip(results, logits, strict=True):
        assert [c["class"] for c in result["classes"]] == np.argsort(-row)[:3].tolist()
        assert [c["label"] for c in result["classes"]] == [
            str(c["class"]) for c in result["classes"]
        ]
        share = np.exp(row.max()) / np.exp(row).sum()
        assert result["classes"][0]["probability"] == pytest.approx(
            share, rel=1e-4
        )  # float32 logits
    main(["predict", str(made / "run"), *images])
    table = capsys.readouterr().out
    assert (
        f"{100 * results[0]['classes'][0]['probability']:.2f} %" in table
        and table.count(" %") == 10
    )


@pytest.mark.parametrize("form", ["run/export/s/1", "run/export/student.tflite", "converted"])
def test_every_form_predicts_alike(made, form, capsys):
    images = sorted(map(str, (made / "images" / "3").iterdir()))[:3]
    if form == "converted" and not (made / form).exists():
        main(["convert", str(made / "run"), "--out", str(made / form)])
        capsys.readouterr()
    for path in ("run", form):
        main(["predict", str(made / path), *images, "--json"])
    first, second = map(json.loads, capsys.readouterr().out.strip().splitlines())
    for a, b in zip(first, second, strict=True):
        assert [c["label"] for c in a["classes"]] == [c["label"] for c in b["classes"]]
        for x, y in zip(a["classes"], b["classes"], strict=True):
            assert x["probability"] == pytest.approx(
                y["probability"], abs=1e-4
            )  # of the exports' verification


def test_convert_and_evaluate_what_was_converted(made, tmp_path, capsys):
    source = ["--source", str(made / "images"), "--json"]
    main(["evaluate", str(made / "run"), *source])
    ours = json.loads(capsys.readouterr().out)
    for layout in ("timm", "huggingface"):
        main(["convert", str(made / "run"), "--layout", layout, "--out", str(tmp_path / layout)])
        capsys.readouterr()
        main(["evaluate", str(tmp_path / layout), *source])
        theirs = json.loads(capsys.readouterr().out)
        assert (theirs["images"], theirs["top1"], theirs["top5"]) == (
            IMAGES,
            ours["top1"],
            ours["top5"],
        )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["predict", "{made}/run", "{made}/note.txt", "--top", "0"],
            "`top` is a number of classes",
        ),
        (["predict", "{made}/nothing", "{made}/note.txt"], "is no run folder"),
        (["convert", "{made}/run", "--out", "{made}/images"], "exists and is left as it is"),
        (["convert", "{made}/images", "--out", "{made}/new"], "holds no weights"),
        (
            ["evaluate", "{made}/run", "--real_labels", "{made}/note.txt"],
            "`real_labels` needs `source`",
        ),
    ],
)
def test_refusals(made, capsys, arguments, message):
    (made / "note.txt").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        main([argument.format(made=made) for argument in arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    shutil.rmtree(made / "new", ignore_errors=True)


FOREIGN = "defaults:\n  - db: mysql\nhydra: {run: {dir: out}}\n"


def test_the_config_of_another_tool_makes_no_run(tmp_path, capsys, caplog):
    """In the root of a project, beside a model and above an export."""
    (tmp_path / "config.yaml").write_text(FOREIGN)
    model = deit_tf.create_model("deit_test", num_classes=5)
    export_saved_model(
        model, tmp_path / "served", processor=deit_tf.ImageProcessor(32), name="s", batch_sizes=(1,)
    )
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    assert run_above(tmp_path / "served" / "s" / "1") is None and not caplog.text
    model.save(tmp_path / "student.keras")
    for form in ("served/s/1", "student.keras"):
        caplog.clear()
        main(["predict", str(tmp_path / form), str(tmp_path / "x.png"), "--json"])
        assert len(json.loads(capsys.readouterr().out)[0]["classes"]) == 5
        assert "its config.yaml is passed over" in caplog.text
        assert ("preprocessing is assumed" in caplog.text) == (form == "student.keras")
    assert load_run(tmp_path / "student.keras").config is None


def test_weights_of_a_bare_file_are_written_with_a_warning(tmp_path, caplog):
    """The preprocessing that goes beside them is assumed."""
    deit_tf.create_model("deit_test", num_classes=3).save(tmp_path / "mine.keras")
    main(["convert", str(tmp_path / "mine.keras"), "--out", str(tmp_path / "out")])
    assert "mine.keras lies in no run" in caplog.text and "is assumed" in caplog.text


def test_a_model_beside_a_config_of_ours_is_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {crop_ratio: 1.0}\n")
    assert run_above(tmp_path) is None
    deit_tf.create_model("deit_test", num_classes=3).save(tmp_path / "student.keras")
    assert (
        load_run(tmp_path).processor.crop_ratio == 1.0 and run_above(tmp_path) == tmp_path.resolve()
    )


@pytest.mark.parametrize("content", [FOREIGN, "optim: 3\n"])
def test_a_run_with_a_damaged_config_is_refused(tmp_path, capsys, content):
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "facts.json").write_text("{}")
    deit_tf.create_model("deit_test", num_classes=3).save(tmp_path / "student.keras")
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path), "x.png"])
    assert "config.yaml is no config of deit-tf" in capsys.readouterr().err


def test_a_model_of_free_size_is_fed_the_originals_size(tmp_path, caplog):
    image = keras.Input((None, None, 3))
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(image)).save(tmp_path / "model.keras")
    assert open_model(str(tmp_path / "model.keras")).processor.size == (224, 224)
    assert "short side 256, bicubic, center crop 224 x 224" in caplog.text


@pytest.mark.parametrize("resize_to", [pytest.param(40, marks=pytest.mark.slow), (36, 48)])
def test_a_tflite_file_outside_of_a_run_is_described_by_its_json_file(
    tmp_path, capsys, caplog, resize_to
):
    keras.utils.set_random_seed(0)
    model, file = deit_tf.create_model("deit_test", num_classes=3), tmp_path / "student.tflite"
    processor = deit_tf.ImageProcessor(
        32, mean=(0.1, 0.2, 0.3), std=(0.1, 0.1, 0.1), resize_to=resize_to, interpolation="bilinear"
    )
    export_tflite(model, file, processor=processor, labels=["ant", "bee", "cat"])
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    main(["predict", str(file), str(tmp_path / "x.png"), "--top", "3", "--json"])
    found = json.loads(capsys.readouterr().out)[0]["classes"]
    expected = np.asarray(keras.ops.softmax(model(processor.batch([pixels]))))[0]
    for one in found:
        assert one["label"] == ("ant", "bee", "cat")[one["class"]]
        assert one["probability"] == pytest.approx(
            expected[one["class"]], abs=1e-4
        )  # of the exports' verification
    assert "assumed" not in caplog.text
    (tmp_path / "student.json").write_text('{"of": "another tool"}')
    assert open_model(str(file)).labels is None
    assert "is passed over" in caplog.text and "preprocessing is assumed" in caplog.text
