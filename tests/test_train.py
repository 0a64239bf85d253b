"""The commands, as a user runs them: teacher, student, evaluation, comparison, and their
refusals."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from deit_tf import train
from deit_tf.cli import main
from deit_tf.config import DataConfig, DistillConfig, StudentConfig, TeacherConfig, TrainConfig
from deit_tf.data import open_sources
from deit_tf.models import heads
from deit_tf.models.mimetic import sinusoids
from deit_tf.runs import RunFolder, load_run, read_config
from deit_tf.tasks import teacher_task

CONFIG = Path(__file__).parent.parent / "configs" / "demo_digits.yaml"
QUICK = [
    "--config",
    str(CONFIG),
    "--epochs",
    "1",
    "--optim.warmup_epochs",
    "0.5",
    "--data.batch_size",
    "128",
    # One narrow block: what takes the time of a training this short is to build its graph.
    "--model.depth",
    "1",
    "--model.embed_dim",
    "24",
]
TEACHER = ["--teacher.name", "resnet8"]
TEACHER += ["--teacher.epochs", "1", "--teacher.optim.warmup_epochs", "0.5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    main(["train-teacher", *QUICK, *TEACHER, "--epochs", "7", "--out", str(folder / "teacher")])
    student = [*QUICK, "--distill.teacher", str(folder / "teacher")]
    main(["train", *student, "--out", str(folder / "distilled")])
    return folder


@pytest.fixture(scope="module")
def undistilled(runs):
    """A student that could have had the teacher."""
    student = [*QUICK, "--distill.teacher", str(runs / "teacher"), "--distill.kind", "none"]
    main(["train", *student, "--out", str(runs / "undistilled")])
    return runs / "undistilled"


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_run_directory(runs):
    run = runs / "distilled"
    assert {p.name for p in run.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "facts.json",
        "first_batch.png",
        "labels.txt",
        "metrics.jsonl",
        "student.keras",
        "student_best.keras",
        "summary.json",
        "tensorboard",
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1]
    for name in (
        "loss",
        "base_loss",
        "distillation_loss",
        "accuracy",
        "accuracy_cls",
        "accuracy_dist",
        "teacher_agreement",
    ):
        assert {name, f"val_{name}"} <= set(lines[0])
    assert lines[0]["gradient_norm"] > 0 and "val_gradient_norm" not in lines[0]
    assert 1 < lines[0]["images_per_second"] < 1e6
    assert lines[0]["steps_per_second"] == pytest.approx(
        lines[0]["images_per_second"] / 128, rel=0.01
    )
    assert 0 <= lines[0]["data_wait_seconds"] < 11 / lines[0]["steps_per_second"]
    assert summary(run)["evaluation"]["accuracy"] == lines[0]["val_accuracy"]
    assert list((run / "tensorboard").rglob("events*"))
    config = read_config(run / "config.yaml")
    assert config.augment.hflip == 0.0 and config.augment.label_smoothing == 0.1
    assert (run / "labels.txt").read_text().split() == list("0123456789")


def test_the_same_seed_trains_the_same_student(runs):
    student = [*QUICK, "--distill.teacher", str(runs / "teacher")]
    main(["train", *student, "--out", str(runs / "again")])
    a, b = (load_run(runs / name).model.get_weights() for name in ("distilled", "again"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_evaluate_agrees_with_training(runs, capsys):
    main(["evaluate", str(runs / "distilled"), "--json"])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    trained = summary(runs / "distilled")["evaluation"]
    assert figures["images"] == 360
    # A tie in a logit's last bit would move one image of 360.
    assert figures["top1"] == pytest.approx(trained["accuracy"], abs=1 / 360)
    assert figures["top1_dist"] == pytest.approx(trained["accuracy_dist"], abs=1 / 360)
    assert figures["top5"] >= figures["top1"]


def test_every_form_of_a_model_evaluates_alike(runs, capsys):
    from deit_tf.exporting.saved_model import export_saved_model
    from deit_tf.exporting.tflite import export_tflite

    run = load_run(runs / "distilled")
    out = runs / "distilled" / "export"
    saved = export_saved_model(run.model, out, processor=run.processor, labels=run.labels)
    export_tflite(run.model, out / "student.tflite", images=run.samples)
    results = []
    for path in (runs / "distilled" / "student.keras", saved, out / "student.tflite"):
        main(["evaluate", str(path), "--json"])
        results.append(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))
    assert results[0]["images"] == 360
    for other in results[1:]:
        assert (other["images"], other["top1"], other["top5"]) == tuple(
            results[0][k] for k in ("images", "top1", "top5")
        )


def test_evaluate_on_another_folder(runs, tmp_path, capsys):
    from sklearn.datasets import load_digits

    scans = load_digits()
    for i in range(20):
        file = tmp_path / str(scans.target[i]) / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.uint8(scans.images[i] * 15.9375)).save(file)
    main(["evaluate", str(runs / "distilled"), "--source", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["images"] == 20
    (tmp_path / "0").rename(tmp_path / "zero")
    with pytest.raises(SystemExit):
        main(["evaluate", str(runs / "distilled"), "--source", str(tmp_path)])
    assert "does not know these classes of the data: zero" in capsys.readouterr().err


def test_compare_and_models(runs, undistilled, capsys):
    main(["compare", str(runs / "teacher"), str(undistilled), str(runs / "distilled")])
    text = capsys.readouterr().out
    assert (
        "teacher" in text
        and f"{100 * summary(runs / 'distilled')['evaluation']['accuracy_cls']:.1f}" in text
    )
    main(["models"])
    assert "5,910,800" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "keras-cv"])
def test_every_policy_trains_with_deterministic_ops(tmp_path, policy):
    """In a process of its own, where nothing else made keras-cv's layers before."""
    arguments = [
        *QUICK,
        "--distill.kind",
        "none",
        "--augment.recipe",
        "deit",
        "--augment.auto_augment",
        policy,
    ]
    arguments += ["--data.batch_size", "512", "--out", str(tmp_path / "run")]
    code = "import sys; from deit_tf.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.isfinite(summary(tmp_path / "run")["evaluation"]["accuracy"])


def test_mimetic_init_is_that_of_the_seed(tmp_path, monkeypatch):
    """What the student starts from: sinusoids where the original draws at random."""
    started = []
    monkeypatch.setattr(train, "_train", lambda task, *rest: started.append(task.trainer.network))
    for seed in ("3", "3"):
        arguments = [*QUICK, "--distill.kind", "none", "--model.init", "mimetic", "--seed", seed]
        main(["train", *arguments, "--out", str(tmp_path / f"run{len(started)}")])
    first, second = (network.get_weights() for network in started)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    position = started[0].get_layer("tokens").pos_embed[0, 2:]
    np.testing.assert_allclose(position, sinusoids(4, 4, position.shape[-1]), atol=1e-6)


def test_processor_and_samples_of_a_run(runs):
    run = load_run(runs / "distilled")
    assert run.processor.crop_ratio == 1.0 and run.processor.size == (16, 16)
    assert run.samples.shape == (32, 16, 16, 3)
    assert load_run(runs / "teacher" / "teacher.keras").name == "teacher"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--out", "{runs}/distilled"], "holds a finished run"),
        (
            ["train", "--model.name", "deit_tset", "--distill.kind", "none"],
            "Did you mean 'deit_test'",
        ),
        (["train", "--distill.teacher", "{runs}/nobody"], "is no run folder"),
        (["train", "--distill.teacher", "null"], "needs a teacher"),
        (
            [
                "train",
                "--distill.teacher",
                "{runs}/teacher",
                "--out",
                "{runs}/teacher",
                "--overwrite",
            ],
            "not be where",
        ),
        (
            ["train", "--model.init", "mimetic", "--model.weights", "{runs}/distilled"],
            "is for fresh weights",
        ),
        (["train", "--data.source", "{runs}/nowhere"], "no such folder"),
        (["train", "--data.batch_size", "5000"], "lies between 1 and the 1437"),
        (
            ["train", "--model.image_size", "33", "--distill.kind", "none"],
            "multiple of patch_size=4",
        ),
        (
            ["train", "--augment.auto_augment", "rand-m99", "--distill.kind", "none"],
            "error: `m` takes a whole number",
        ),
        (
            ["train", "--augment.mixup", "-1", "--distill.kind", "none"],
            "`augment.mixup` lies in 0..inf",
        ),
        (
            ["train", "--task", "masked", "--model.trainable", "heads"],
            "`model.trainable` is for `task` classify",
        ),
        (["train", "--xla", "true"], "`xla` promises no deterministic kernels"),
        (["train", "--xla", "true", "--strategy", "mirrored"], "`xla` works on one device"),
        (["train", "--micro_batches", "3"], "the nearest is 129. Received: 128"),
        (
            ["train", "--distill.train_heads", "both"],
            "`distill.train_heads` is for `distill.kind` none",
        ),
        (
            ["train", "--distill.kind", "none", "--optim.layer_decay", "2"],
            "`layer_decay` lies in (0, 1]",
        ),
        (
            ["train", "--distill.kind", "none", "--optim.ema_decay", "1"],
            "`ema_decay` lies in [0, 1)",
        ),
        (
            ["train", "--distill.kind", "none", "--checkpoint.keep", "0"],
            "`checkpoint.keep` is at least 1",
        ),
        (["train-teacher", "--teacher.name", "regnety_999"], "Unknown model name='regnety_999'"),
        (["train-teacher", "--teacher.name", "keras:ResNet51"], "no network 'ResNet51'"),
        (["evaluate", "{runs}/nothing"], "lies in no run"),
        (["compare", "{runs}"], "no finished run"),
    ],
)
def test_refusals(runs, tmp_path, capsys, arguments, message):
    out = (
        []
        if "--out" in arguments or arguments[0] in ("evaluate", "compare")
        else ["--out", str(tmp_path / "out")]
    )
    config = QUICK if arguments[0].startswith("train") else []
    with pytest.raises(SystemExit) as stop:
        main([arguments[0], *config, *(a.format(runs=runs) for a in arguments[1:]), *out])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("run", [train.train, train.train_teacher])
def test_a_single_class_is_refused(tmp_path, run):
    for i in range(3):
        (tmp_path / "data" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "data" / "cat" / f"{i}.png")
    config = TrainConfig(
        model=StudentConfig("deit_test"),
        data=DataConfig(str(tmp_path / "data"), batch_size=2),
        distill=DistillConfig("none"),
        out=str(tmp_path / "out"),
    )
    with pytest.raises(ValueError, match="needs two classes at least .* Found in .*data: cat"):
        run(config)
    assert not (tmp_path / "out").exists()


def test_unknown_settings_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--optim.wd", "1"])
    assert "--optim.wd" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    out = tmp_path / "out"
    rising = ["--optim.warmup_lr", "1e-3", "--optim.lr", "1e35", "--optim.scale_lr", "false"]
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "train",
                *QUICK,
                "--distill.kind",
                "none",
                *rising,
                "--checkpoint.every_steps",
                "1",
                "--out",
                str(out),
            ]
        )
    assert stop.value.code == 2
    message = capsys.readouterr().err
    told = re.search(
        r"is nan at step (\d+) of epoch 1, at learning rate \S+ in float32. Lower `optim.lr`",
        message,
    )
    assert told, message
    assert not list(out.glob("*.keras"))
    last = sorted((out / "checkpoints").glob("*"))[-1]
    assert f"The last good checkpoint is {last}" in message
    assert int(last.stem.split("-")[1]) == int(told[1]) - 1
    assert all(np.isfinite(array).all() for array in load_file(last).values())


@pytest.fixture
def stopped(undistilled, tmp_path):
    """A run that was killed when it had trained, before it wrote its model."""
    folder = shutil.copytree(undistilled, tmp_path / "stopped")
    for name in ("summary.json", "student.keras"):
        (folder / name).unlink()
    return folder


def test_a_stopped_run_of_the_same_config_goes_on(runs, undistilled, stopped):
    main(
        [
            "train",
            *QUICK,
            "--distill.kind",
            "none",
            "--distill.teacher",
            str(runs / "teacher"),
            "--out",
            str(stopped),
        ]
    )
    for a, b in zip(
        *(load_run(run).model.get_weights() for run in (stopped, undistilled)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert summary(stopped)["evaluation"] == summary(undistilled)["evaluation"]


def test_a_stopped_run_of_another_config_is_refused(runs, stopped, capsys):
    changed = [
        "--distill.kind",
        "none",
        "--distill.teacher",
        str(runs / "teacher"),
        "--optim.lr",
        "0.016",
        "--augment.hflip",
        "0.5",
        "--data.num_parallel_calls",
        "1",
        "--out",
        str(stopped),
    ]
    with pytest.raises(SystemExit):
        main(["train", *QUICK, *changed])
    message = capsys.readouterr().err
    assert "augment.hflip: 0.0 then, 0.5 now; optim.lr: 0.032 then, 0.016 now. Restore" in message
    assert "num_parallel_calls" not in message
    assert not (stopped / "student.keras").exists()
    main(["train", *QUICK, *changed, "--accept-changes"])
    assert (
        read_config(stopped / "config.yaml").optim.lr == 0.016
        and (stopped / "student.keras").exists()
    )


def test_a_stopped_teacher_goes_on_where_the_config_names_it(runs, tmp_path, monkeypatch):
    """Its own files, gone with --overwrite, have no part in it; nor has how a student learns."""
    begun = []
    monkeypatch.setattr(train, "_train", lambda task, *rest: begun.append(task))
    folder = shutil.copytree(runs / "teacher", tmp_path / "teacher")
    arguments = ["train-teacher", *QUICK, "--distill.teacher", str(folder), "--out", str(folder)]
    main([*arguments, "--overwrite"])
    main([*arguments, "--distill.alpha", "0.3"])
    assert len(begun) == 2


def test_other_steps_per_epoch_are_refused_whatever_is_accepted(runs, stopped, capsys):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        main(
            [
                "train",
                *QUICK,
                "--distill.kind",
                "none",
                "--data.batch_size",
                "64",
                "--accept-changes",
                "--out",
                str(stopped),
            ]
        )
    message = capsys.readouterr().err
    assert "of 11 steps per epoch, which `data.batch_size` and the images decide" in message
    assert "Received: 22 steps per epoch" in message
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_everything_at_once_from_the_weights_of_a_run(runs, tmp_path):
    out = tmp_path / "fine"
    main(
        [
            "train",
            *QUICK,
            "--model.weights",
            str(runs / "distilled"),
            "--model.image_size",
            "24",
            "--distill.kind",
            "none",
            "--distill.train_heads",
            "cls",
            "--model.trainable",
            "attention",
            "--precision",
            "mixed_float16",
            "--micro_batches",
            "2",
            "--loss",
            "binary_cross_entropy",
            "--augment.label_smoothing",
            "0",
            "--optim.optimizer",
            "lamb",
            "--optim.ema_decay",
            "0.9",
            "--optim.layer_decay",
            "0.75",
            "--optim.clip_norm",
            "1.0",
            "--out",
            str(out),
        ]
    )
    run = load_run(out)
    assert set(heads(run.model).output) == {"cls"} and run.model.input_shape[1:3] == (24, 24)
    line = json.loads((out / "metrics.jsonl").read_text())
    assert {"skipped_steps", "val_accuracy", "val_ema_accuracy"} <= set(line)
    assert summary(out)["evaluation"]["ema_accuracy"] == line["val_ema_accuracy"]
    before = {w.path: np.array(w) for w in load_run(runs / "distilled").model.weights}
    still = {
        w.path
        for w in run.model.weights
        if w.shape == before[w.path].shape and (w == before[w.path]).numpy().all()
    }
    assert "blocks.0/mlp/fc1/kernel" in still and "blocks.0/attn/qkv/kernel" not in still
    averaged = load_run(out / "student_ema.keras").model
    assert np.abs(averaged.get_weights()[-1] - run.model.get_weights()[-1]).max() > 1e-6
    assert averaged.trainable_weights and all(layer.trainable for layer in run.model.layers)


def test_labels_made_ahead_train_the_same_student(runs, tmp_path, capsys):
    labels = ["--distill.labels", str(tmp_path / "labels")]
    teacher = ["--distill.teacher", str(runs / "teacher")]
    main(["label", *QUICK, *teacher, *labels, "--out", str(tmp_path / "cached")])
    main(["train", *QUICK, *teacher, *labels, "--out", str(tmp_path / "cached")])
    for a, b in zip(
        *(load_run(run).model.get_weights() for run in (tmp_path / "cached", runs / "distilled")),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert summary(tmp_path / "cached")["evaluation"] == summary(runs / "distilled")["evaluation"]

    longer = ["--epochs", "2", "--extend", "--out", str(tmp_path / "cached")]
    with pytest.raises(SystemExit):
        main(["train", *QUICK, *teacher, *labels, *longer])
    assert "lacks the labels of epoch 1. Make them" in capsys.readouterr().err
    assert summary(tmp_path / "cached")["epochs"] == 1  # as it was


def test_xla_trains_what_the_graph_trains(runs, tmp_path, undistilled):
    options = [
        "--distill.kind",
        "none",
        "--deterministic",
        "false",
        "--xla",
        "true",
        "--out",
        str(tmp_path / "xla"),
    ]
    main(["train", *QUICK, *options])
    compiled, plain = (load_run(run).model.get_weights() for run in (tmp_path / "xla", undistilled))
    for a, b in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(
            a, b, atol=2e-3
        )  # AdamW divides by gradients near 0: 11 steps of up to 8e-3


def test_rates_that_rise_are_warned_of(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(train, "_train", lambda *given: None)  # it is before
    main(
        [
            "train",
            *QUICK,
            "--distill.kind",
            "none",
            "--optim.min_lr",
            "0.1",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    assert "`optim.min_lr` 0.1 exceeds that peak" in caplog.text
    assert "Effective batch 128 = 1 replicas x 1 micro-batches x 128 images" in caplog.text


def test_a_teachers_config_is_the_students_to_take(runs):
    config = read_config(runs / "teacher" / "config.yaml")
    assert (config.epochs, config.teacher.epochs, summary(runs / "teacher")["epochs"]) == (7, 1, 1)
    assert len((runs / "teacher" / "metrics.jsonl").read_text().splitlines()) == 1
    assert config.teacher.augment == config.teacher.augment.resolve()


def test_a_teacher_goes_on_if_its_own_recipe_is_the_same(runs, tmp_path):
    folder = shutil.copytree(runs / "teacher", tmp_path / "stopped")
    for name in ("summary.json", "teacher.keras"):
        (folder / name).unlink()
    places = RunFolder(folder)
    facts = json.loads(places.facts.read_text())
    given = replace(read_config(places.config), out=str(folder))

    def check(config):
        recipe = train._recipe_of_teacher
        places.check_free(facts, overwrite=False)
        places.check_unchanged(recipe(config), recipe(read_config(places.config)), facts)

    students = {
        "epochs": 9,
        "optim": replace(given.optim, lr=1.0),
        "augment": replace(given.augment, hflip=0.5),
    }
    check(replace(given, **students))
    teacher = replace(given.teacher, optim=replace(given.teacher.optim, lr=1.0))
    with pytest.raises(ValueError, match="teacher.optim.lr: 0.032 then, 1.0 now"):
        check(replace(given, teacher=teacher))


def test_train_teacher_tells_whose_recipe_it_takes(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(train, "_run", lambda config, *_: config)
    train.train_teacher(TrainConfig())
    assert "settings teacher.epochs, teacher.optim, teacher.augment" in caplog.text


@pytest.mark.parametrize("image_size, expected", [(None, 32), (24, 24)])
def test_a_teachers_images_have_the_students_size(image_size, expected):
    config = TrainConfig(
        model=StudentConfig("deit_test", image_size=image_size),
        teacher=TeacherConfig("resnet20"),
        data=DataConfig(),
    )
    network = teacher_task(config, open_sources(config.data)).trainer.network
    assert network.input_shape == (None, expected, expected, 3)


def test_a_teacher_of_keras_applications_trains(tmp_path):
    main(
        [
            "train-teacher",
            *QUICK,
            *TEACHER,
            "--teacher.name",
            "keras:MobileNetV2",
            "--data.batch_size",
            "700",
            "--teacher.image_size",
            "32",
            "--out",
            str(tmp_path / "teacher"),
        ]
    )
    model = keras.saving.load_model(tmp_path / "teacher" / "teacher.keras")
    assert model.output_shape == (None, 10)
    # Normalized images of pixels 0 and 255 reach MobileNetV2 as -1 and 1.
    black = (0.0 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    inner = keras.Model(model.input, model.get_layer("renormalize").output)
    np.testing.assert_allclose(
        inner(np.broadcast_to(black, (1, 32, 32, 3)).astype("float32")), -1, atol=1e-5
    )


def test_config_out_is_what_the_flags_say(runs, undistilled):
    assert read_config(runs / "distilled" / "config.yaml").out == str(runs / "distilled")
    assert read_config(undistilled / "config.yaml") == replace(
        read_config(runs / "distilled" / "config.yaml"),
        out=str(undistilled),
        distill=replace(read_config(runs / "distilled" / "config.yaml").distill, kind="none"),
    )
