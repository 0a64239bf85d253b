"""The loop ends early where nothing gets better, stopped in between or not, and tells its steps."""

from dataclasses import dataclass, field

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deit_tf.data import padded
from deit_tf.training.best import BestEpochs
from deit_tf.training.checkpoints import Checkpoints
from deit_tf.training.loop import Loop
from deit_tf.training.metrics import EpochFigures
from deit_tf.training.trainer import LabelTrainer

BATCH, STEPS, CLASSES = 8, 5, 3


@dataclass
class Models:
    """Model files that are not written: what is done to them, in its order."""

    stops_after: int = 99  # epochs
    best: list[float] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def write_best(self, network):
        self.best.append(float(np.sum(np.abs(network.get_weights()[0]))))

    def write_epoch(self, network, epoch):
        self.epochs.append(epoch)

    def keep(self, epochs):
        self.epochs = [epoch for epoch in self.epochs if epoch in epochs]
        self.stops_after -= 1
        if not self.stops_after:
            raise KeyboardInterrupt


def loop(folder, models, learning_rate=0.0, best=None, ema_decay=None, seen=lambda batch: None):
    """A linear classifier of noise; by default one that stays as it is."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    trainer = LabelTrainer(keras.Sequential(layers))
    trainer.compile(keras.optimizers.SGD(learning_rate), ema_decay=ema_decay)
    trainer.optimizer.build(trainer.learned)
    draw = np.random.default_rng(0)
    images = draw.normal(size=(BATCH * STEPS, 4, 4, 3)).astype("float32")
    labels = np.eye(CLASSES, dtype="float32")[draw.integers(0, CLASSES, BATCH * STEPS)]
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH, drop_remainder=True)

    return Loop(
        trainer,
        lambda first: data.repeat().skip(first),
        padded(data, BATCH),
        epochs=7,
        steps=STEPS,
        batch_size=BATCH,
        strategy=tf.distribute.get_strategy(),
        checkpoints=Checkpoints(folder / "checkpoints", keep=9),
        every_steps=None,
        log_steps=2,
        figures=EpochFigures(folder / "metrics.jsonl", folder / "tensorboard"),
        best=best or BestEpochs("accuracy", patience=2, keep=2),
        models=models,
        on_first_batch=seen,
        xla=False,
        precision="float32",
    )


def states(folder):
    """What each checkpoint says of itself; its checksum is of all its variables."""
    files = sorted((folder / "checkpoints").iterdir())
    return {file.name: safe_open(file, "numpy").metadata() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, models, seen = tmp_path_factory.mktemp("whole"), Models(), []
    outcome = loop(folder, models, seen=seen.append).run()
    return folder, models, outcome, seen


def test_it_ends_after_so_many_epochs_without_a_better_one(whole):
    folder, models, outcome, _ = whole
    assert (outcome.epochs, outcome.best_epoch) == (3, 1)
    assert outcome.best == outcome.evaluation["accuracy"]
    assert (len(models.best), models.epochs) == (1, [1, 2])


@pytest.mark.parametrize("epochs", [1, 2, 3])  # the last of them is when it is over already
def test_one_that_was_stopped_in_between_ends_at_the_same_epoch(whole, tmp_path, epochs):
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, Models(epochs)).run()
    again = Models()
    assert loop(tmp_path, again).run() == whole[2]
    assert states(tmp_path) == states(whole[0])
    assert not again.best  # the first stays the best


def test_what_gets_better_is_waited_for(tmp_path):
    models = Models()
    outcome = loop(tmp_path, models, 0.02, BestEpochs("loss", patience=1, keep=3)).run()
    assert (outcome.epochs, outcome.best_epoch, models.epochs) == (7, 7, [5, 6, 7])
    assert outcome.best == outcome.evaluation["loss"]


def test_of_the_average_the_average_is_kept(tmp_path):
    models = Models()
    best = BestEpochs("ema_loss", patience=1)
    made = loop(tmp_path, models, 0.02, best, ema_decay=0.5)
    made.run()
    mine, average = (
        float(np.sum(np.abs(network.get_weights()[0])))
        for network in (made.trainer.network, made.trainer.ema.network)
    )
    assert models.best[-1] == average != mine


def test_another_figure_chooses_the_best_anew(whole, tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, Models(2)).run()
    with caplog.at_level("INFO"):
        outcome = loop(tmp_path, Models(), best=BestEpochs("loss", patience=2)).run()
    assert "chosen anew: by loss, not accuracy" in caplog.text
    assert (outcome.epochs, outcome.best_epoch) == (5, 3)


def curve(events, name):
    """Steps and numbers of a curve."""
    found = events.Tensors(name)
    numbers = [float(tf.make_ndarray(each.tensor_proto)) for each in found]
    return [each.step for each in found], numbers


def test_tensorboard_has_the_figures_of_steps(whole):
    events = EventAccumulator(str(whole[0] / "tensorboard" / "train"))
    events.Reload()
    steps, losses = curve(events, "batch_loss")
    assert steps == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    mean = np.average(losses[:3], weights=[2, 2, 1])
    assert mean == pytest.approx(curve(events, "epoch_loss")[1][0], rel=1e-5)  # float32
    assert curve(events, "batch_learning_rate") == (steps, [0.0] * 9)


def test_the_first_batch_is_shown_once(whole):
    [(images, labels)] = whole[3]
    assert images.shape == (BATCH, 4, 4, 3) and labels.shape == (BATCH, CLASSES)
