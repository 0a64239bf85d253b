"""Fine-tune a DeiT on a folder of your own, with Keras's plain `fit`.

    python examples/finetune_folder.py photos --weights hf://facebook/deit-tiny-patch16-224

`photos` holds one folder per class, or `train/` and `val/` of such. With --weights runs/student the
model and its image size are those of that run; without --weights it starts from scratch.
"""

import argparse
from dataclasses import replace

import deit_tf
import keras
from deit_tf.config import AugmentConfig, DataConfig, OptimConfig
from deit_tf.runs import is_keras, load_run


def main() -> None:
    """Open the folder, build, fit, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--model", help="by default that of --weights, or DeiT-Ti")
    parser.add_argument("--weights", help="a run, .keras or .safetensors, a folder, or hf://...")
    parser.add_argument("--image-size", type=int, help="by default that of a run, or 224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", default="student.keras")
    given = parser.parse_args()

    is_run = given.weights and is_keras(given.weights)
    processor = load_run(given.weights).processor if is_run else deit_tf.ImageProcessor()
    if given.image_size:
        processor = replace(processor, image_size=given.image_size)
    norm = {"mean": processor.mean, "std": processor.std}
    data = DataConfig(given.folder, batch_size=given.batch_size, **norm)
    training, held_out = deit_tf.data.open_sources(data)
    steps = deit_tf.data.steps_per_epoch(training, data.batch_size)
    # crops and flips: enough for a model that has seen pictures before
    augment = AugmentConfig("light")
    batches = deit_tf.data.train_dataset(training, data, augment, processor, epochs=given.epochs)
    classes = len(training.class_names)
    evaluation = deit_tf.data.eval_dataset(held_out, data, processor).map(
        lambda images, labels: (images, keras.ops.one_hot(labels, classes))
    )

    model = deit_tf.create_model(
        given.model or (None if given.weights else "deit_tiny_patch16_224"),
        num_classes=classes,
        num_channels=processor.num_channels,
        image_size=processor.size,
        weights=given.weights,
        drop_path_rate=0.1,
    )
    recipe = OptimConfig(lr=5e-5, min_lr=0.0, warmup_epochs=1)  # a tenth of that from scratch
    optimizer = deit_tf.optim.build_optimizer(recipe, data.batch_size, steps, given.epochs)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    length = {"epochs": given.epochs, "steps_per_epoch": steps}
    model.fit(batches, **length, validation_data=evaluation, verbose=2)
    model.save(given.out)
    print(f"{given.out}: {classes} classes: {', '.join(training.class_names)}")


if __name__ == "__main__":
    main()
