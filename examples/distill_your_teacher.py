"""Distill a DeiT from your own Keras classifier, on your own images.

    python examples/distill_your_teacher.py photos teacher.keras --mean .5 .5 .5 --std .5 .5 .5

The teacher may be any Keras model from images to logits over the same classes, in the order of the
class folders. --mean and --std are those that its images were normalized with, for pixels in 0..1.
"""

import argparse

import deit_tf
import keras
from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig, OptimConfig


def main() -> None:
    """Open the folder, freeze the teacher, distill, save the student."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("teacher", help="a .keras file")
    parser.add_argument("--mean", type=float, nargs=3, default=IMAGENET_MEAN)
    parser.add_argument("--std", type=float, nargs=3, default=IMAGENET_STD)
    parser.add_argument("--model", default="deit_tiny_distilled_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", default="student.keras")
    given = parser.parse_args()

    data = DataConfig(given.folder, batch_size=given.batch_size)
    training, held_out = deit_tf.data.open_sources(data)
    steps = deit_tf.data.steps_per_epoch(training, data.batch_size)
    processor = deit_tf.ImageProcessor(given.image_size)
    batches = deit_tf.data.train_dataset(
        training, data, AugmentConfig("deit"), processor, epochs=given.epochs
    )
    evaluation = deit_tf.data.eval_dataset(held_out, data, processor)

    network = keras.saving.load_model(given.teacher, compile=False)
    network.trainable = False  # a teacher is frozen
    expected = deit_tf.ImageProcessor(given.image_size, mean=given.mean, std=given.std)
    teacher = deit_tf.Teacher(network, expected)
    student = deit_tf.create_model(
        given.model,
        num_classes=len(training.class_names),
        image_size=given.image_size,
        drop_path_rate=0.1,
    )
    distiller = deit_tf.Distiller(student, teacher, kind="hard")
    warmup = min(5, given.epochs / 2)
    recipe = OptimConfig(warmup_epochs=warmup)
    distiller.compile(deit_tf.optim.build_optimizer(recipe, data.batch_size, steps, given.epochs))
    distiller.fit(
        batches, epochs=given.epochs, steps_per_epoch=steps, validation_data=evaluation, verbose=2
    )
    distiller.student.save(given.out)  # no teacher inside
    print(f"Student: {given.out}")


if __name__ == "__main__":
    main()
