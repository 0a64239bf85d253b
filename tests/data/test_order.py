"""Groups of a batch and shares of workers, beside the sampler and the loop of the original."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from deit_tf.config import AugmentConfig, DataConfig, MaskConfig
from deit_tf.data import (
    ImageProcessor,
    Source,
    eval_dataset,
    masked_dataset,
    masked_eval_dataset,
    mixing,
    open_sources,
    padded,
    train_dataset,
)
from deit_tf.data.order import Rows, group_size

GOLDEN = Path(__file__).parents[1] / "golden"
DEIT = AugmentConfig("deit").resolve()
PROCESSOR = ImageProcessor(16)
REPEATS = 3


class RASampler:
    """The indices of one rank (facebookresearch/deit samplers.py, `__init__` and `__iter__`), for a
    given permutation."""

    def __init__(self, permutation, num_replicas, rank):
        self.permutation, self.num_replicas, self.rank = permutation, num_replicas, rank
        size = len(permutation)
        self.num_samples = math.ceil(size * float(REPEATS) / num_replicas)
        self.total_size = self.num_samples * num_replicas
        self.num_selected_samples = math.floor(size // 256 * 256 / num_replicas)

    def __iter__(self):
        indices = np.repeat(self.permutation, REPEATS).tolist()
        padding = self.total_size - len(indices)
        indices += indices[:padding]
        indices = indices[self.rank : self.total_size : self.num_replicas]
        return iter(indices[: self.num_selected_samples])


def augments_by(monkeypatch, stand_in):
    """Let `stand_in` make the image of an item."""
    made_by = "deit_tf.data.augment.traced_augmentation"
    monkeypatch.setattr(made_by, lambda *settings: stand_in)


def recorded(monkeypatch, batch_size, steps):
    """What each group of the first steps is mixed from, indices [steps, G, M], and each seed."""
    size, seen = 20 * batch_size, []

    def at(seed, place):
        index = tf.random.experimental.index_shuffle(place, seed, size - 1)
        return {"index": index, "image": index, "label": tf.constant(0)}

    def spy(images, labels, seed, config):
        tf.numpy_function(lambda *drawn: seen.append(drawn), [images[:, 0], seed], [])
        return images, labels

    monkeypatch.setattr(mixing, "mix", spy)
    augments_by(monkeypatch, lambda index, _: index[None])
    source = Source("numbers", ("a", "b"), size, None, at=at)
    data = DataConfig(batch_size=batch_size, num_parallel_calls=1)
    batches = train_dataset(source, data, DEIT, PROCESSOR, epochs=1).take(steps)
    rows = [images[:, 0].numpy() for images, _ in batches]

    images = group_size(batch_size, DEIT)
    mixed = np.stack([numbers for numbers, _ in seen])[: steps * batch_size // images]
    assert (np.concatenate(rows) == mixed.ravel()).all()  # a batch is its groups in order
    return mixed.reshape(steps, -1, images), [tuple(seed) for _, seed in seen], size


def permutation_of(size, seed=0):
    """Of the first epoch."""
    key = tf.random.fold_in(tf.random.fold_in(tf.constant([0, seed], tf.int64), 0), 0)
    places = tf.range(size, dtype=tf.int64)
    return tf.random.experimental.index_shuffle(places, key, size - 1).numpy()


def test_groups_are_the_batches_of_the_originals_gpus(monkeypatch):
    """16 GPUs of 64 images, three steps: who is where, beside whom, and how often."""
    steps, gpus, images = 3, 16, 64
    mixed, seeds, size = recorded(monkeypatch, gpus * images, steps)
    order = permutation_of(size)

    for rank in range(gpus):
        sampler = list(RASampler(order, gpus, rank))
        for step in range(steps):
            theirs = sampler[step * images : (step + 1) * images]
            np.testing.assert_array_equal(mixed[step, rank], theirs)

    assert len(set(seeds[: steps * gpus])) == steps * gpus  # each its own draw
    for step in mixed:
        assert all(len(set(group)) == images for group in step)  # no copy beside its copy
        _, copies = np.unique(step, return_counts=True)
        assert (copies == REPEATS).mean() > 0.99


@pytest.mark.parametrize("gpus", [1, 2])
def test_copies_meet_where_there_are_fewer_groups(monkeypatch, gpus):
    images = 64
    mixed, _, size = recorded(monkeypatch, gpus * images, 1)
    for rank in range(gpus):
        theirs = list(RASampler(permutation_of(size), gpus, rank))[:images]
        np.testing.assert_array_equal(mixed[0, rank], theirs)
        assert len(set(theirs)) < images


@pytest.mark.parametrize(
    "mix_group, draws", [(64, 16), pytest.param(1024, 1, marks=pytest.mark.slow)]
)
def test_each_group_is_mixed_by_a_draw_of_its_own(mix_group, draws):
    """In a batch of 1,024, by the shares of mixup in its labels."""
    source, _ = open_sources(DataConfig("digits"))
    augment = AugmentConfig("light", mixup=0.8, label_smoothing=0.0, mix_group=mix_group)
    data = DataConfig(batch_size=1024)
    _, labels = next(iter(train_dataset(source, data, augment, PROCESSOR, epochs=1)))

    largest = labels.numpy().max(-1).reshape(-1, mix_group)  # 1 where partners are of one class
    shares = [set(np.round(group[group < 1], 5)) for group in largest]
    assert all(len(share) == 1 for share in shares) and len(set.union(*shares)) == draws


@pytest.mark.parametrize(
    "batch_size, mix_group, size",
    [(1024, 64, 64), (48, 64, 48), (64, 64, 64), (96, 64, 48), (130, 64, 26), (134, 64, 2)],
)
def test_a_group_is_the_largest_divisor(batch_size, mix_group, size):
    assert group_size(batch_size, replace(DEIT, mix_group=mix_group)) == size


def test_a_batch_that_would_be_mixed_with_itself_is_refused():
    with pytest.raises(ValueError, match="67 falls into no equal groups of 2 to 64 images"):
        group_size(67, DEIT)
    assert group_size(67, replace(DEIT, mix_group=67)) == 67
    assert group_size(67, replace(DEIT, mixup=0.0, cutmix=0.0)) == 67


def test_rows_of_a_batch():
    rows = Rows.of_part((1, 4), 24, 4)
    assert (rows.start, rows.stop, list(rows.groups)) == (6, 12, [1, 2])
    assert rows.in_whole_groups() == Rows(24, 4, 4, 12)
    assert Rows.of_part((0, 2), 8, 4).places().tolist() == [0, 2, 4, 6]
    for part in ((2, 2), (-1, 2), (0, 5), (0, 0)):
        with pytest.raises(ValueError, match=r"`part` is \(i, n\) with 0 <= i < n"):
            Rows.of_part(part, 24)


def test_batches_of_one_group_are_what_they_were():
    """golden/older_stream.npz has those of the code without groups."""
    golden, data = np.load(GOLDEN / "older_stream.npz"), DataConfig(batch_size=48)
    training, _ = open_sources(data)
    made = train_dataset(training, data, DEIT, PROCESSOR, epochs=2, seed=3, first_step=28)
    for step, (images, labels) in enumerate(made.take(3)):
        # kernels of another machine round the last bits of float32 otherwise
        np.testing.assert_allclose(labels, golden["labels"][step], atol=1e-6)
        np.testing.assert_allclose(
            tf.reduce_mean(images, (1, 2, 3)), golden["means"][step], atol=1e-5
        )


# Shares of workers


def sources(sequential):
    """Digits, by place or as records that can only be read in their order."""
    return [replace(each, at=None) if sequential else each for each in open_sources(DataConfig())]


class Counted:
    """Stands for what decodes a file: an image for each seed, or for evaluation, and a count."""

    def __init__(self):
        self.count = 0

    def __call__(self, content, seed=(0, 0), *_):
        tf.numpy_function(self._increase, [], [])
        return tf.random.stateless_normal((2, 2, 3), seed)

    def _increase(self):
        self.count += 1


@pytest.mark.parametrize(
    "augment, decoding, sequential",
    [
        (replace(DEIT, mix_group=8), 1, True),
        (replace(DEIT, mix_group=32), 2, False),  # two workers share a group, and both decode it
        (AugmentConfig("light", repeats=3), 1, True),
        pytest.param(replace(DEIT, mix_group=8), 1, False, marks=pytest.mark.slow),
        pytest.param(replace(DEIT, mix_group=32), 2, True, marks=pytest.mark.slow),
        pytest.param(AugmentConfig("light", repeats=3), 1, False, marks=pytest.mark.slow),
    ],
)
def test_workers_share_one_batch_and_decode_their_own_images(
    monkeypatch, augment, decoding, sequential
):
    training, data = sources(sequential)[0], DataConfig(batch_size=64)
    training, everything = replace(training, size=128), training.read
    if sequential:
        training = replace(training, read=lambda seed: everything(seed).take(128))

    def batches(part):
        decode = Counted()
        augments_by(monkeypatch, decode)
        made = train_dataset(
            training, data, augment, PROCESSOR, epochs=2, seed=3, first_step=1, part=part
        )
        return list(made.as_numpy_iterator()), decode.count

    whole, decoded = batches((0, 1))
    assert len(whole) == 3 and decoded == 3 * 64
    for workers in (2, 4):
        made = [batches((worker, workers)) for worker in range(workers)]
        shared = decoding if workers == 4 else 1  # of the two groups of 32
        assert [count for _, count in made] == [3 * 64 // workers * shared] * workers
        for step, both in enumerate(whole):
            for column, wanted in enumerate(both):
                found = np.concatenate([share[step][column] for share, _ in made])
                np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_evaluation_counts_each_image_once_whoever_has_it(workers, sequential):
    held_out, data = sources(sequential)[1], DataConfig(batch_size=64)  # 360 = 5 * 64 + 40
    steps, share = 6, 64 // workers
    expected = np.concatenate([labels for _, labels in eval_dataset(held_out, data, Counted())])
    rows = np.full((workers, steps, share), -1)

    for worker in range(workers):
        decode = Counted()
        part = eval_dataset(held_out, data, decode, part=(worker, workers))
        batches = list(padded(part, share, steps))
        assert [len(images) for images, _, _ in batches] == [share] * steps
        for step, (_, labels, weight) in enumerate(batches):
            rows[worker, step] = np.where(weight > 0, labels, -1)
        assert decode.count == (rows[worker] >= 0).sum() <= 5 * share + min(share, 40)

    in_order = rows.transpose(1, 0, 2).ravel()
    np.testing.assert_array_equal(in_order[:360], expected)
    assert (in_order[360:] == -1).all()


def test_evaluation_begins_at_any_batch():
    for sequential in (False, True):
        held_out, data = sources(sequential)[1], DataConfig(batch_size=64)
        labels = [row.numpy() for _, row in eval_dataset(held_out, data, Counted())]
        later = eval_dataset(held_out, data, Counted(), first_step=4)
        np.testing.assert_array_equal(
            np.concatenate([row for _, row in later]), np.concatenate(labels[4:])
        )


def test_going_on_reads_nothing_that_precedes(monkeypatch):
    augments_by(monkeypatch, Counted())
    training, places = sources(False)[0], []

    def at(seed, place):
        tf.numpy_function(places.append, [place], [])
        return training.at(seed, place)

    watched, data = replace(training, at=at), DataConfig(batch_size=32)
    last = training.size // 32 - 1
    made = train_dataset(
        watched, data, AugmentConfig("light"), PROCESSOR, epochs=1, first_step=last
    )
    assert len(list(made)) == 1
    assert sorted(places) == list(range(32 * last, 32 * last + 32))


def test_masked_batches_are_shared_too(monkeypatch):
    augments_by(monkeypatch, Counted())
    training, held_out = sources(False)
    data, mask, light = DataConfig(batch_size=32), MaskConfig(unit=8), AugmentConfig("light")

    def made(part):
        train = masked_dataset(
            training, data, light, mask, PROCESSOR, 4, epochs=1, first_step=42, part=part
        )
        after = masked_eval_dataset(held_out, data, mask, PROCESSOR, 4, part=part)
        return [*train.as_numpy_iterator(), *after.take(2).as_numpy_iterator()]

    whole, halves = made((0, 1)), [made((worker, 2)) for worker in range(2)]
    assert len(whole) == 4
    for step, batch in enumerate(whole):
        for key, wanted in batch.items():
            found = np.concatenate([half[step][key] for half in halves])
            np.testing.assert_array_equal(found, wanted)
