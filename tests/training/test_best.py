"""Which epoch is the best, which models stay, and when nothing better is waited for."""

from types import SimpleNamespace

import pytest

import deit_tf
from deit_tf.training.best import BestEpochs, monitored


def epochs(name, *figures):
    return [{"epoch": i, f"val_{name}": figure} for i, figure in enumerate(figures, 1)]


def test_of_a_loss_less_is_better_and_of_all_others_more():
    best = BestEpochs("distillation_loss", keep=2)
    assert best.kept(epochs("distillation_loss", 3.0, 1.0, 2.0)) == [2, 3]
    assert best.figure(best.score({"val_distillation_loss": 1.5})) == 1.5
    assert BestEpochs("accuracy", keep=2).kept(epochs("accuracy", 0.3, 0.1, 0.2)) == [1, 3]


def test_of_equals_the_earlier_stays():
    assert BestEpochs("accuracy", keep=2).kept(epochs("accuracy", 0.1, 0.5, 0.5, 0.5)) == [2, 3]


def test_an_epoch_before_the_figure_was_there_is_not_ranked():
    assert BestEpochs("ema_loss").kept([{"epoch": 1}, *epochs("ema_loss", 2.0)[:1]]) == [1]


@pytest.mark.parametrize(
    ("patience", "trained", "best_epoch", "over"),
    [(3, 7, 4, True), (3, 6, 4, False), (1, 5, 4, True), (None, 99, 1, False), (1, 5, None, False)],
)
def test_the_run_is_over_after_so_many_epochs_without_a_better_one(
    patience, trained, best_epoch, over
):
    assert BestEpochs("loss", patience).are_over(trained, best_epoch) == over


@pytest.fixture(scope="module")
def trainer():
    student = deit_tf.create_model("deit_test", num_classes=3, image_size=16, depth=1, embed_dim=24)
    made = deit_tf.Distiller(student, kind="none")
    made.compile("sgd", ema_decay=0.9)
    return made


def test_by_default_the_accuracy_decides(trainer):
    assert monitored(None, trainer) == "accuracy"
    assert monitored("ema_loss", trainer) == "ema_loss"


def test_the_figures_that_there_are_are_named(trainer):
    with pytest.raises(ValueError, match=r"accuracy, .*accuracy_dist, .*Received: top1"):
        monitored("top1", trainer)
    with pytest.raises(ValueError, match="Received: gradient_norm"):  # of training alone
        monitored("gradient_norm", trainer)
    trainer.ema = None
    with pytest.raises(ValueError, match=r"`ema_...` with `optim.ema_decay`. Received: ema_loss"):
        monitored("ema_loss", trainer)


def test_without_an_accuracy_the_loss_decides():
    class Masked(SimpleNamespace):
        evaluation = deit_tf.MaskedTrainer.evaluation

    masked = Masked(metrics=[SimpleNamespace(name="loss")], ema=None)
    assert monitored(None, masked) == "loss"
