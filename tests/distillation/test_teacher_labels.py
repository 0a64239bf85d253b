"""Labels computed ahead: the bytes on disk, what they are refused for, and that they are the live
teacher's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import deit_tf
from deit_tf.cli import main
from deit_tf.config import AugmentConfig, DataConfig, DistillConfig, StudentConfig, TrainConfig
from deit_tf.data import ImageProcessor, eval_dataset, open_sources, padded, train_dataset
from deit_tf.distillation import make_labels as labeling
from deit_tf.distillation.fingerprint import differences, stream_facts, teacher_files
from deit_tf.distillation.label_files import Layout, Unit
from deit_tf.distillation.teacher_labels import open_cache
from deit_tf.distillation.teacher_sources import load_teacher
from deit_tf.files import locked
from deit_tf.models.resnet import create_resnet
from deit_tf.runs import write_config

SIZE, BATCH, CLASSES, EPOCHS, TOP_K = 16, 16, 10, 4, 3
STEPS, HELD_OUT = 10, 40
FILE_IMAGES = 4 * BATCH  # three files per epoch: 4, 4 and 2 steps
FILES = 3 * EPOCHS + 1


def save_teacher(file, seed):
    keras.utils.set_random_seed(seed)
    model = create_resnet("resnet8", num_classes=CLASSES, image_size=SIZE)
    rng = np.random.default_rng(seed)
    for w in model.weights:  # a fresh network gives all images the same decision
        if w.name in ("moving_mean", "moving_variance", "kernel") and w.shape[-1] != CLASSES:
            w.assign(
                rng.normal(0, 0.3, w.shape)
                if w.name != "moving_variance"
                else rng.uniform(0.5, 2, w.shape)
            )
    head = model.get_layer("head").kernel
    noise = rng.normal(size=(64, SIZE, SIZE, 3)).astype("float32")
    head.assign(head * (2 / np.std(model(noise, training=False))))  # in doubt now and then
    model.save(file)
    return str(file)


def save_digits(folder):
    """Twenty scans of each digit; sixteen are to train on."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for i, scan in enumerate(scans.images[scans.target == label][:20]):
            Image.fromarray(np.uint8(scan * 15.9375)).save(folder / str(label) / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    return TrainConfig(
        model=StudentConfig("deit_test", image_size=SIZE, patch_size=4, drop_path_rate=0.0),
        data=DataConfig(
            save_digits(folder / "digits"),
            holdout=0.2,
            verify=False,
            batch_size=BATCH,
            crop_ratio=1.0,
        ),
        augment=AugmentConfig("none", hflip=0.5, mixup=0.8, cutmix=1.0),
        distill=DistillConfig(teacher=save_teacher(folder / "teacher.keras", 3)),
        epochs=EPOCHS,
        out=str(folder),
    )


@pytest.fixture(scope="module")
def sources(config):
    return open_sources(config.data)


@pytest.fixture(scope="module")
def small_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labeling, "FILE_IMAGES", FILE_IMAGES)
        yield


@pytest.fixture(scope="module")
def cache(config, small_files, tmp_path_factory):
    """Hard labels of all epochs, made by the command in one go; its config says how many epochs
    there are."""
    folder = tmp_path_factory.mktemp("hard")
    write_config(config, folder / "config.yaml")
    main(
        [
            "label",
            "--config",
            str(folder / "config.yaml"),
            "--distill.labels",
            str(folder / "labels"),
        ]
    )
    return folder / "labels"


@pytest.fixture(scope="module")
def soft_config(config):
    return replace(config, epochs=1, distill=replace(config.distill, kind="soft", top_k=TOP_K))


@pytest.fixture(scope="module")
def soft_cache(soft_config, small_files, tmp_path_factory):
    return labeling.make_labels(soft_config, tmp_path_factory.mktemp("soft"), range(1))


@pytest.fixture(scope="module")
def opened(config, sources, cache):
    return open_cache(cache, config, sources)


def batches(config, sources, **kwargs):
    return train_dataset(
        sources[0],
        config.data,
        config.augment,
        ImageProcessor.from_config(config.data, SIZE),
        epochs=config.epochs,
        seed=0,
        **kwargs,
    )


def held_out(config, sources):
    return eval_dataset(sources[1], config.data, ImageProcessor.from_config(config.data, SIZE))


def live_logits(config, dataset):
    """What the teacher says of each batch, [B, C]."""
    teacher = load_teacher(config.distill.teacher, tuple("0123456789"))
    run = tf.function(
        lambda images: teacher.logits(images, ImageProcessor.from_config(config.data, SIZE)),
        reduce_retracing=True,
    )
    return [run(batch[0]).numpy() for batch in dataset]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_two_processes_one_of_them_killed_make_what_one_makes(config, cache, tmp_path):
    write_config(config, tmp_path / "config.yaml")
    script = (
        "import sys, time; from deit_tf.distillation import make_labels as labeling; from "
        "deit_tf.runs import read_config\nlabeling.FILE_IMAGES, write, written = "
        f"{FILE_IMAGES}, labeling.Layout.write, []\ndef write_three(*given):\n    "
        "write(*given), written.append(given)\n    len(written) < 3 or "
        "time.sleep(600)\nlabeling.Layout.write = "
        "write_three\nlabeling.make_labels(read_config(sys.argv[1]), sys.argv[2], range(4), "
        "(2, 2))"
    )
    folder = tmp_path / "labels"
    second = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "config.yaml"), str(folder)]
    )
    labeling.make_labels(config, folder, range(EPOCHS), (1, 2))
    third = folder / "epoch-0002.steps-000008-000010.labels"
    while not third.exists() and second.poll() is None:
        time.sleep(0.01)
    os.kill(second.pid, signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    assert len(list(folder.glob("*.labels"))) == FILES // 2 + 3
    third.unlink()
    (folder / f".{third.stem}.partial.1.labels").write_bytes(
        b"torn"
    )  # as a process leaves it that dies while writing
    labeling.make_labels(config, folder, range(EPOCHS), (2, 2))
    assert contents(folder) == contents(cache)


def test_the_same_share_is_not_made_twice_at_a_time(config, tmp_path):
    folder, lock = tmp_path / "labels", labeling.LOCK.format(1, 2)
    with locked(folder, lock, "makes the same labels in", "Wait."):
        with pytest.raises(BlockingIOError, match="makes the same labels in .*other shards can"):
            labeling.make_labels(config, folder, range(1), shard=(1, 2))
        assert [file.name for file in folder.iterdir() if file.suffix != ".json"] == [lock]


def test_what_is_complete_is_not_made_again(config, cache, monkeypatch):
    before = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert len(before) == FILES + 1
    monkeypatch.setattr(labeling, "_answerer", None)  # nobody asks the teacher
    labeling.make_labels(config, cache, range(EPOCHS))
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == before


def test_a_flipped_byte_is_found_and_made_anew(config, sources, cache, tmp_path):
    folder = shutil.copytree(cache, tmp_path / "labels")
    file = folder / "epoch-0001.steps-000004-000008.labels"
    whole = file.read_bytes()
    for damaged in (whole[:33] + bytes([whole[33] ^ 1]) + whole[34:], whole[:-1], b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"Damaged, as the checksum tells: .*{file.name}"):
            open_cache(folder, config, sources)
    shutil.copy(
        folder / "epoch-0002.steps-000004-000008.labels", file
    )  # whole, but of another epoch
    with pytest.raises(ValueError, match=f"Damaged.*{file.name}"):
        open_cache(folder, config, sources)
    labeling.make_labels(config, folder, range(1, 2))
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "section, changes, message",
    [
        ("augment", {"mixup": 0.7}, r"augment\.mixup: then 0\.8, now 0\.7"),
        (
            "augment",
            {"hflip": 0.25, "repeats": 2},
            r"hflip: then 0\.5, now 0\.25\n.*repeats: then 1, now 2",
        ),
        ("augment", {"crop": "simple"}, r"augment\.crop: then .random_resized., now .simple."),
        ("augment", {"interpolation": "random"}, r"augment\.interpolation: then .bicubic., now"),
        ("augment", {"erase_mode": "rand"}, r"augment\.erase_mode: then .pixel., now .rand."),
        ("augment", {"erase_count": 2}, r"augment\.erase_count: then 1, now 2"),
        ("augment", {"mix_mode": "elem"}, r"augment\.mix_mode: then .batch., now .elem."),
        ("augment", {"cutmix_minmax": (0.2, 0.8)}, r"augment\.cutmix_minmax: then null, now \[0"),
        ("data", {"batch_size": 15}, r"data\.batch_size: then 16, now 15"),
        ("data", {"std": (0.5, 0.5, 0.5)}, r"data\.std: then \[0\.229.*now \[0\.5"),
        ("data", {"crop_ratio": 0.5}, r"data\.crop_ratio: then 1\.0, now 0\.5"),
        ("model", {"image_size": 32}, r"image_size: then \[16, 16\], now \[32, 32\]"),
        ("distill", {"top_k": 5}, r"distill\.top_k: then 0, now 5"),
        (
            "distill",
            {"teacher": "keras:ResNet50"},
            r"teacher\.name: then .*teacher\.keras.*now .*keras:ResNet50",
        ),
        (None, {"seed": 1}, r"seed: then 0, now 1"),
    ],
)
def test_a_difference_is_refused_by_name(config, sources, cache, section, changes, message):
    other = replace(
        config, **({section: replace(getattr(config, section), **changes)} if section else changes)
    )
    with pytest.raises(ValueError, match=f"(?s)made for something else:.*{message}"):
        open_cache(cache, other, sources)


def test_another_teacher_is_refused_by_name(config, sources, cache, tmp_path):
    def taught_by(name):
        return replace(config, distill=replace(config.distill, teacher=name))

    other = save_teacher(tmp_path / "teacher.keras", 4)
    with pytest.raises(
        ValueError, match=r"teacher\.files: then [0-9a-f]{12}\.\.\., now [0-9a-f]{12}"
    ):
        open_cache(cache, taught_by(other), sources)
    with pytest.raises(ValueError, match=r"teacher\.weights: then"):
        labeling.make_labels(taught_by(other), cache, range(1))
    # Not compared: no teacher, or one whose files lie on the machine that made the labels.
    open_cache(cache, taught_by(None), sources)
    open_cache(cache, taught_by("/elsewhere/teacher"), sources)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(config.distill.teacher, run / "teacher.keras")
    (run / "metrics.jsonl").write_text("{}")
    open_cache(cache, taught_by(str(run)), sources)
    assert teacher_files(f"regnety_160:{other}") == teacher_files(other) != teacher_files(str(run))
    assert teacher_files(str(run)) == teacher_files(config.distill.teacher)
    assert (
        teacher_files(str(tmp_path / "nobody"))
        is teacher_files("hf://timm/regnety_160.deit_in1k")
        is None
    )


def test_true_labels_do_not_matter(config, sources, cache):
    open_cache(
        cache, replace(config, augment=replace(config.augment, label_smoothing=0.1)), sources
    )


def test_a_stream_that_comes_out_otherwise_is_refused(config, sources, cache, tmp_path):
    folder = shutil.copytree(cache, tmp_path / "labels")
    facts = json.loads((folder / "manifest.json").read_text())
    pixels = np.array(facts["stream.pixels"])
    for shift, other in (
        (1e-4, False),
        (0.1, True),
    ):  # another machine's rounding; another augmentation
        (folder / "manifest.json").write_text(
            json.dumps(facts | {"stream.pixels": list(pixels + shift)})
        )
        if other:
            with pytest.raises(ValueError, match=r"stream\.pixels: then 16 entries with"):
                open_cache(folder, config, sources)
        else:
            open_cache(folder, config, sources)


def test_the_images_of_a_folder_are_told_by_names_and_sizes(tmp_path):
    def facts(folder):
        made = TrainConfig(
            data=DataConfig(source=str(folder), batch_size=4, verify=False),
            augment=AugmentConfig("none"),
        )
        return stream_facts(made, open_sources(made.data), ImageProcessor(8))

    for name in [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(4)]:
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (int(name[4]) * 40, 0, 0)).save(tmp_path / "a" / name)
    then = facts(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert differences(then, facts(shutil.move(tmp_path / "a", tmp_path / "b"))) == []
    Image.effect_noise((8, 8), 90).save(tmp_path / "b" / "cat" / "0.png")
    assert [line.split(":")[0] for line in differences(then, facts(tmp_path / "b"))] == [
        "data.content"
    ]
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "dog" / "new.png")
    (tmp_path / "b" / "dog").rename(tmp_path / "b" / "wolf")
    named = {line.split(":")[0] for line in differences(then, facts(tmp_path / "b"))}
    assert named == {"data.content", "data.classes", "data.images"}


def test_other_sources_are_told_by_their_first_images():
    made = TrainConfig(data=DataConfig("digits", batch_size=4), augment=AugmentConfig("none"))
    training, held_out = open_sources(made.data)

    def other(seed):
        return training.read(seed).map(lambda item: item | {"label": 9 - item["label"]})

    then = stream_facts(made, (training, held_out), ImageProcessor(8))
    assert then["data.source"] == ["digits/train", "digits/eval"]
    changed = (replace(training, read=other, at=None), held_out)
    named = differences(then, stream_facts(made, changed, ImageProcessor(8)))
    assert [line.split(":")[0] for line in named] == ["data.content"]


def test_what_is_missing_is_named(config, sources, cache, tmp_path):
    with pytest.raises(ValueError, match="lacks the labels of epochs 4 to 6. Make them"):
        open_cache(cache, replace(config, epochs=7), sources)
    folder = shutil.copytree(cache, tmp_path / "labels")
    for file in [
        *folder.glob("epoch-0000*"),
        *folder.glob("epoch-0003*"),
        *folder.glob("*-000004-*"),
        *folder.glob("held-out*"),
    ]:
        file.unlink(missing_ok=True)
    told = (
        r"epoch 0, epoch 3, epoch 1 \(steps 4 to 7\), epoch 2 \(steps 4 to 7\), the held-out images"
    )
    with pytest.raises(ValueError, match=f"lacks the labels of {told}"):
        open_cache(folder, config, sources)
    with pytest.raises(
        FileNotFoundError, match="holds no teacher labels. Make them with `deit-tf label`"
    ):
        open_cache(tmp_path, config, sources)


def test_labels_are_the_live_teachers(config, sources, opened):
    plain = list(batches(config, sources))
    attached, live = list(opened.attach(batches(config, sources))), live_logits(config, plain)
    assert len(attached) == len(live) == EPOCHS * STEPS
    assert len(set(np.concatenate(live).argmax(-1))) > 3
    for (images, y), (plain_images, labels), logits in zip(attached, plain, live, strict=True):
        np.testing.assert_array_equal(images, plain_images)
        np.testing.assert_array_equal(y["labels"], labels)
        np.testing.assert_array_equal(
            y["teacher_logits"], np.eye(CLASSES, dtype="float32")[logits.argmax(-1)]
        )
    mixed = np.concatenate([labels for _, labels in plain])
    assert (mixed.max(-1) < 1).mean() > 0.5  # mixup and CutMix acted
    assert attached[0][1]["teacher_logits"].dtype == attached[0][1]["labels"].dtype == tf.float32


def test_a_stream_resumed_in_the_middle_has_the_same_labels(config, sources, opened):
    whole = [y["teacher_logits"].numpy() for _, y in opened.attach(batches(config, sources))]
    assert len(whole) == EPOCHS * STEPS
    for first in (STEPS, 2 * STEPS + 5, 4 * STEPS - 1):  # at an epoch, within a file, the last step
        resumed = opened.attach(batches(config, sources, first_step=first), first)
        assert int(resumed.cardinality()) == len(whole) - first
        for y, expected in zip(
            resumed.map(lambda images, y: y["teacher_logits"]), whole[first:], strict=True
        ):
            np.testing.assert_array_equal(y, expected)
    with pytest.raises(
        ValueError, match="pass `train_dataset` the same `first_step`. Received: 37 batches"
    ):
        opened.attach(batches(config, sources, first_step=3))


def test_held_out_labels_follow_any_batching(config, sources, opened):
    plain = held_out(config, sources)
    decisions = np.concatenate(live_logits(config, plain)).argmax(-1)
    assert len(decisions) == HELD_OUT and HELD_OUT % BATCH
    for dataset in (plain, plain.unbatch().batch(13)):
        attached = list(opened.attach_held_out(dataset))
        found = np.concatenate([y["teacher_logits"] for _, y in attached])
        np.testing.assert_array_equal(found, np.eye(CLASSES)[decisions])
        truth = np.concatenate([labels for _, labels in dataset])
        np.testing.assert_array_equal(
            np.concatenate([y["labels"] for _, y in attached]), np.eye(CLASSES)[truth]
        )

    filled = list(opened.attach_held_out(padded(plain, BATCH)))
    assert filled[-1][0].shape[0] == BATCH and filled[-1][2].numpy().sum() == HELD_OUT % BATCH
    found = np.concatenate([y["teacher_logits"] for _, y, _ in filled])[:HELD_OUT]
    np.testing.assert_array_equal(found.argmax(-1), decisions)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_each_worker_has_the_labels_of_its_share(config, sources, opened, workers):
    processor, first = ImageProcessor.from_config(config.data, SIZE), 2 * STEPS + 5
    whole = [y["teacher_logits"] for _, y in opened.attach(batches(config, sources))][first:]
    after = [y["teacher_logits"] for _, y in opened.attach_held_out(held_out(config, sources))]

    for worker in range(workers):
        part, share = (worker, workers), BATCH // workers
        rows = slice(worker * share, (worker + 1) * share)
        mine = batches(config, sources, first_step=first, part=part)
        found = [y["teacher_logits"] for _, y in opened.attach(mine, first, part)]
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_array_equal(one, other[rows])

        mine = eval_dataset(sources[1], config.data, processor, part=part)
        found = [y["teacher_logits"] for _, y in opened.attach_held_out(mine, part)]
        assert len(found) in (len(after) - 1, len(after))
        for one, other in zip(found, after, strict=False):
            np.testing.assert_array_equal(one, other[rows])


def test_soft_labels_reproduce_the_kept_probabilities(soft_config, sources, soft_cache):
    plain = batches(soft_config, sources)
    opened = open_cache(soft_cache, soft_config, sources)
    rows = np.concatenate([y["teacher_logits"] for _, y in opened.attach(plain)])
    live = np.concatenate(live_logits(soft_config, plain))
    wanted, found = (tf.nn.softmax(x).numpy() for x in (live, rows))
    assert 0.3 < wanted.max(-1).mean() < 0.9
    kept = np.argsort(-live, axis=-1, kind="stable")[:, :TOP_K]
    # float16 rounds a logarithm by 2**-11 of itself at most, and p |log p| stays below 0.37.
    np.testing.assert_allclose(
        np.take_along_axis(found, kept, -1), np.take_along_axis(wanted, kept, -1), atol=4e-4
    )
    others = np.ones_like(rows, bool)
    np.put_along_axis(others, kept, False, -1)
    rest = found[others].reshape(-1, CLASSES - TOP_K)
    assert (rest.max(-1) == rest.min(-1)).all()  # spread evenly
    np.testing.assert_allclose(rest.sum(-1), wanted[others].reshape(rest.shape).sum(-1), atol=4e-4)
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))
    # For `hard` they serve as well, by the decision.
    hard = replace(soft_config, distill=replace(soft_config.distill, kind="hard"))
    decided = np.concatenate(
        [y["teacher_logits"] for _, y in open_cache(soft_cache, hard, sources).attach(plain)]
    )
    np.testing.assert_array_equal(decided, np.eye(CLASSES)[live.argmax(-1)])


def test_rounding_does_not_move_the_decision():
    layout = Layout(
        classes=300, batch_size=1, images=1, held_out=1, top_k=2, steps_per_file=1, identity=b""
    )
    assert layout.class_dtype == np.uint16
    log_probabilities = np.log(np.float32([[0.30003, 0.30001, 0.39996]]))
    packed = np.frombuffer(layout.pack(np.array([[299, 7]]), log_probabilities)[:6], "<f2")
    assert packed[0] == np.float16(log_probabilities[0, 1])  # both round to the same
    assert packed[0] > packed[1]


@pytest.mark.parametrize(
    "classes, top_k, size",
    [(256, 0, 1), (257, 0, 2), (65536, 0, 2), (65537, 0, 4), (1000, 10, 42), (10, 3, 11)],
)
def test_bytes_per_image(classes, top_k, size):
    layout = Layout(classes, 64, 1437, 360, top_k, 10, b"")
    assert layout.image_bytes == size
    labels = np.full((5, top_k) if top_k else 5, classes - 1)
    soft = np.zeros((5, top_k + 1), "float32") if top_k else None
    assert len(layout.pack(labels, soft)) == 5 * size
    assert layout.pack(np.array([classes - 1]), None)[0] == (classes - 1) % 256  # little-endian
    assert [layout.count(unit) for unit in layout.training_units([0])] == [640, 640, 128]
    assert layout.count(Unit(None, 0, 6)) == 360


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"teacher": None}, "`distill.teacher` set. Received: classify, hard, None"),
        ({"kind": "none"}, "Received: classify, none"),
        ({"kind": "soft"}, "`distill.kind` soft needs `distill.top_k`"),
        ({"top_k": 10}, r"`distill.top_k` lies in 0\.\.9.* 9 the whole distribution. Received: 10"),
    ],
)
def test_configs_that_make_no_labels(config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        labeling.make_labels(
            replace(config, distill=replace(config.distill, **changes)),
            tmp_path / "labels",
            range(1),
        )
    assert not (tmp_path / "labels").exists()


def test_a_teacher_of_hidden_probabilities_makes_no_labels(soft_config, tmp_path):
    """They would pass for logits, and teach that all classes are nearly alike."""
    network = keras.models.load_model(soft_config.distill.teacher)
    softmax = keras.layers.Softmax()(network.output)
    hidden = keras.Model(network.input, keras.layers.Reshape((CLASSES,))(softmax))
    hidden.save(tmp_path / "hidden.keras")

    distill = replace(soft_config.distill, teacher=str(tmp_path / "hidden.keras"))
    with pytest.raises(ValueError, match="gives probabilities"):
        labeling.make_labels(replace(soft_config, distill=distill), tmp_path / "labels", range(1))
    assert not (tmp_path / "labels").exists()


def test_soft_distillation_refuses_hard_labels(soft_config, sources, cache):
    unset = replace(soft_config, distill=replace(soft_config.distill, top_k=0))
    with pytest.raises(ValueError, match="'soft' needs probabilities, and .* holds hard labels"):
        open_cache(cache, unset, sources)


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("--epochs", "2:2", "`epochs` are A:B with 0 <= A < B. Received: 2:2"),
        ("--epochs", "one", "--epochs"),
        ("--shard", "3/2", "`shard` is I/N with 1 <= I <= N. Received: 3/2"),
        ("--shard", "2", "--shard"),
    ],
)
def test_arguments_that_are_refused(tmp_path, capsys, flag, value, message):
    with pytest.raises(SystemExit) as stop:
        main(["label", "--distill.teacher", "x.keras", "--out", str(tmp_path), flag, value])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_epochs_as_yaml_would_misread_them(config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "deit_tf.distillation.make_labels.make_labels", lambda *given: seen.append(given)
    )
    for text in ("1:35", "7"):  # YAML takes 1:35 for ninety-five
        main(["label", "--out", "here", "--epochs", text, "--shard", "2/3"])
    assert [(str(folder), epochs, shard) for _, folder, epochs, shard in seen] == [
        ("here/labels", range(1, 35), (2, 3)),
        ("here/labels", range(7), (2, 3)),
    ]
    assert seen[0][0].epochs == 35


def distiller(teacher, kind):
    keras.utils.set_random_seed(0)
    student = deit_tf.create_model(
        "deit_test", num_classes=CLASSES, image_size=SIZE, patch_size=4, depth=1
    )
    made = deit_tf.Distiller(student, teacher, kind=kind)
    made.compile(deit_tf.training.optim.AdamW(1e-3), jit_compile=False)
    return made


def test_training_from_labels_gives_the_bits_of_the_live_teacher(config, sources, opened):
    tf.config.experimental.enable_op_determinism()
    live = distiller(load_teacher(config.distill.teacher, sources[0].class_names), "hard")
    cached, stream = distiller(None, "hard"), batches(config, sources)
    settings = dict(steps_per_epoch=STEPS, shuffle=False, verbose=0)
    cached.fit(opened.attach(stream), **settings)
    live.fit(stream, **settings)
    for a, b in zip(cached.student.get_weights(), live.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert cached.history.history == live.history.history
    assert 0 < cached.history.history["teacher_agreement"][0] < 1


def test_labels_judge_held_out_images_as_the_live_teacher_does(
    config, sources, opened, soft_config, soft_cache
):
    plain = held_out(config, sources)
    truth = plain.map(lambda images, labels: (images, tf.one_hot(labels, CLASSES)))
    for kind, cache in (("hard", opened), ("soft", open_cache(soft_cache, soft_config, sources))):
        live = distiller(load_teacher(config.distill.teacher, sources[0].class_names), kind)
        wanted = [live.batch_result(batch, training=False).values for batch in truth]
        cached = distiller(None, kind)
        found = [
            cached.batch_result(batch, training=False).values
            for batch in cache.attach_held_out(plain)
        ]
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a["teacher_agreement"], b["teacher_agreement"])
            np.testing.assert_array_equal(a["accuracy"], b["accuracy"])
            # The divergence counts the teacher's entropy in, which spreading seven classes evenly
            # raises by up to 0.4 here; one-hot rows taken for logits would be off by more.
            atol = 0 if kind == "hard" else 0.5
            np.testing.assert_allclose(
                a["distillation_loss"], b["distillation_loss"], rtol=0, atol=atol
            )
            assert kind == "hard" or not np.array_equal(
                a["distillation_loss"], b["distillation_loss"]
            )
