"""Images with any number of labels: a file of labels, teacher, student, evaluation, exports,
report."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score

from deit_tf.cli import main
from deit_tf.config import AugmentConfig, DataConfig
from deit_tf.data import ImageProcessor, eval_dataset, open_sources, train_dataset
from deit_tf.evaluation.evaluate import evaluate
from deit_tf.evaluation.predict import predict_files
from deit_tf.exporting.session import load_saved_model
from deit_tf.files import read_json
from deit_tf.runs import load_run

NAMES = ("blue", "green", "red")
SETTINGS = [
    "--task=multilabel",
    "--model.name=deit_test",
    "--model.depth=1",
    "--model.embed_dim=24",
    "--model.num_heads=2",
    "--data.batch_size=16",
    "--augment.recipe=none",
    "--epochs=2",
    "--optim.lr=0.05",
    "--optim.warmup_epochs=0.5",
]


def draw(file, labels, seed):
    """Noise, in which a channel is bright for each label."""
    pixels = np.random.default_rng(seed).integers(0, 60, (20, 24, 3))
    for name in labels:
        pixels[..., 2 - NAMES.index(name)] += 180
    Image.fromarray(pixels.astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """48 pictures with up to three labels, and a file that says which, with splits."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = ["image,labels,split"]
    for i in range(48):
        labels = [name for bit, name in enumerate(NAMES) if i >> bit & 1]
        draw(folder / f"{i}.png", labels, i)
        lines.append(f"{i}.png,{'|'.join(labels)},{'val' if i >= 36 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """A student without a teacher, and one that learns from it."""
    out = tmp_path_factory.mktemp("runs")
    source = [*SETTINGS, f"--data.source={pictures / 'labels.csv'}"]
    main(["train", *source, "--distill.kind=none", "--epochs=1", f"--out={out / 'teacher'}"])
    taught = [f"--distill.teacher={out / 'teacher'}", "--data.class_weights=balanced"]
    main(["train", *source, *taught, f"--out={out / 'student'}"])
    return out


def test_a_run_learns_the_labels(runs):
    lines = [json.loads(line) for line in (runs / "student/metrics.jsonl").read_text().splitlines()]
    assert {"base_loss", "distillation_loss", "f1_samples", "f1_samples_cls"} <= set(lines[0])
    assert "accuracy" not in lines[0] and lines[-1]["val_loss"] < lines[0]["val_loss"]
    assert (runs / "student/labels.txt").read_text().split() == list(NAMES)
    assert read_json(runs / "student/summary.json")["kind"] == "hard"


def test_a_run_is_evaluated_as_in_training_and_with_scikit_learn(runs, pictures, tmp_path, capsys):
    run = load_run(runs / "student")
    main(["evaluate", str(runs / "student"), f"--out={tmp_path}", "--json"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    trained = read_json(runs / "student/summary.json")["evaluation"]
    assert figures["images"] == 12
    assert figures["f1_samples"] == pytest.approx(trained["f1_samples"], abs=1e-6)

    batches = list(eval_dataset(run.sources[1], run.config.data, run.processor))
    images, truth = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    found = run.model.predict(images, verbose=0) > 0
    assert figures["f1_macro"] == pytest.approx(f1_score(truth, found, average="macro"))
    assert 0 < figures["mean_average_precision"] <= 1
    rows = (tmp_path / "per_class.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["blue", "6"], ["green", "6"], ["red", "8"]]


def test_a_run_is_exported_with_a_sigmoid(runs, pictures, tmp_path):
    run, file = load_run(runs / "student"), str(pictures / "5.png")
    main(["export", "saved-model", str(runs / "student"), f"--out={tmp_path}"])
    main(["export", "tflite", str(runs / "student"), f"--out={tmp_path / 'student.tflite'}"])
    (saved,) = tmp_path.glob("student/*")
    assert read_json(tmp_path / "student.json")["activation"] == "sigmoid"
    assert read_json(saved / "assets.extra/model.json")["activation"] == "sigmoid"
    assert (saved / "assets/labels.txt").read_text().split() == list(NAMES)

    outputs = load_saved_model(saved).run("images", run.processor.batch([file]))
    expected = 1 / (1 + np.exp(-outputs["logits"]))
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)
    assert outputs["top_k_probabilities"].sum() != pytest.approx(1, abs=1e-3)

    answers = []
    for path in (runs / "student", saved, tmp_path / "student.tflite"):
        (answer,) = predict_files(str(path), [file])
        answers.append({each["label"]: each["probability"] for each in answer["classes"]})
        assert answers[-1] == pytest.approx(answers[0], abs=1e-5)
        figures = evaluate(str(path), run=str(runs / "student"))
        assert figures["images"] == 12 and "top1" not in figures
    assert main(["export", "check", str(runs / "student"), f"--exports={tmp_path}"]) in (0, None)


def test_a_run_has_a_report_of_labels(runs, capsys):
    main(["compare", str(runs / "teacher"), str(runs / "student")])
    assert "F1" in capsys.readouterr().out
    main(["report", str(runs / "student")])
    page = (runs / "student/report.html").read_text()
    for text in ("Who finds the labels", "mean average precision", "as the teacher", "F1 of a"):
        assert text in page
    assert "Confusion" not in page


def test_mixing_mixes_the_labels_as_they_are(pictures):
    sources = open_sources(DataConfig(str(pictures / "labels.csv"), batch_size=8))
    augment, processor = AugmentConfig("none", mixup=0.8), ImageProcessor(16)
    batches = train_dataset(sources[0], DataConfig(batch_size=8), augment, processor, epochs=1)
    _, labels = next(iter(batches))
    sums = labels.numpy().sum(-1)
    assert labels.shape == (8, 3) and sums.max() > 1 and ((labels > 0) & (labels < 1)).numpy().any()


@pytest.mark.parametrize(
    "settings, message",
    [
        (["--task=classify"], "softmax cannot learn them. Set `task` to multilabel"),
        (["--data.source=digits"], "`task` multilabel takes images of any number of labels"),
        (["--augment.label_smoothing=0.1"], "`augment.label_smoothing` spreads one label"),
        (["--distill.kind=hard", "--distill.labels=x"], "`distill.labels` holds one class"),
        (["--distill.kind=soft", "--distill.normalization=numel"], "`distill.normalization` is of"),
        (["--distill.kind=hard", "--distill.teacher=keras:ResNet50"], "names one class"),
        (["--data.class_weights=[1,2]"], "`data.class_weights` has a number for each of the 3"),
        (["--data.class_weights=[1,2,0]"], "`data.class_weights` is balanced, a list"),
        (["--task=masked", "--data.class_weights=balanced"], "is for tasks with labels"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    pictures, tmp_path, capsys, settings, message
):
    source = f"--data.source={pictures / 'labels.csv'}"
    out = f"--out={tmp_path / 'run'}"
    with pytest.raises(SystemExit):
        main(["train", *SETTINGS, "--distill.kind=none", source, out, *settings])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_run_teaches_its_own_task_alone(runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "train",
                *SETTINGS,
                "--task=classify",
                "--data.source=digits",
                f"--distill.teacher={runs / 'teacher'}",
                f"--out={tmp_path / 'run'}",
            ]
        )
    assert "says of each class whether it is there" in " ".join(capsys.readouterr().err.split())


def test_a_run_is_not_evaluated_on_images_of_one_class(runs):
    with pytest.raises(ValueError, match="tells any number of labels of an image, and those of"):
        evaluate(str(runs / "student"), source="digits")
