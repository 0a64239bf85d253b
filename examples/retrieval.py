"""Find the nearest neighbors of every picture in a folder, by the class token of a DeiT, and say
how good they are.

    python examples/retrieval.py photos runs/student --k 5

Precision at k is the share of the k nearest other pictures (by cosine) that are of the same class.
"""

import argparse

import deit_tf
import keras
import numpy as np
from deit_tf.config import DataConfig
from deit_tf.data.sources import open_whole
from deit_tf.runs import load_run


def main() -> None:
    """Embed the folder, rank, measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="a folder of class folders")
    parser.add_argument("run", help="a run directory or a .keras file")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--show", type=int, default=3, help="pictures whose neighbors are printed")
    given = parser.parse_args()

    run = load_run(given.run)
    source = open_whole(DataConfig(given.folder))
    batches = deit_tf.data.eval_dataset(source, DataConfig(given.folder), run.processor)
    found = deit_tf.features(run.model)
    embed = keras.Model(found.input, found.output["cls"])  # of all features the one that is needed
    tokens = embed.predict(batches.map(lambda images, _: images), verbose=0)  # [n, D]
    labels = np.concatenate([batch for _, batch in batches.as_numpy_iterator()])  # [n]

    tokens = tokens - tokens.mean(0)  # what all pictures have in common tells none from another
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    similarity = tokens @ tokens.T  # [n, n]
    np.fill_diagonal(similarity, -np.inf)  # a picture is not its own neighbor
    nearest = np.argsort(-similarity, axis=-1)[:, : given.k]  # [n, k]

    names = np.array(source.class_names)
    for i in np.linspace(0, source.size - 1, given.show).astype(int):
        print(
            f"picture {i} ({names[labels[i]]}): "
            f"{', '.join(f'{j} ({names[labels[j]]})' for j in nearest[i])}"
        )
    precision = (labels[nearest] == labels[:, None]).mean()
    chance = np.mean([(labels == label).sum() - 1 for label in labels]) / (source.size - 1)
    print(
        f"precision at {given.k}: {100 * precision:.1f} % of {source.size} pictures (by chance "
        f"{100 * chance:.1f} %)"
    )


if __name__ == "__main__":
    main()
