"""The model files of a run: of its last epoch, of its best ones, and of its moving average."""

from collections.abc import Collection
from dataclasses import dataclass

import keras

from deit_tf.files import replacing
from deit_tf.runs.folder import RunFolder


@dataclass(frozen=True)
class ModelFiles:
    """Writes the models of a run.

    Args:
        folder: The run.
        trained: What it trains: `student`, `teacher` or `masked`.
        writes: Whether this process writes; of a cluster one alone does.
        several_best: Whether more than one of the best epochs keeps its model, each in a file of
            its own.
    """

    folder: RunFolder
    trained: str
    writes: bool
    several_best: bool

    def write(self, network: keras.Model, version: str = "") -> None:
        """Write a model; `version` is as of `RunFolder.model`."""
        if self.writes:
            with replacing(self.folder.model(self.trained, version)) as temporary:
                network.save(temporary)

    def write_best(self, network: keras.Model) -> None:
        """Write the model of the best epoch so far."""
        self.write(network, "_best")

    def write_epoch(self, network: keras.Model, epoch: int) -> None:
        """Write the model of an epoch that is among the best."""
        if self.several_best:
            self.write(network, self.folder.version_of_epoch(epoch))

    def keep(self, epochs: Collection[int]) -> None:
        """Remove the models of all epochs but these."""
        if not self.writes:
            return
        kept = {
            self.folder.model(self.trained, self.folder.version_of_epoch(epoch)) for epoch in epochs
        }
        for file in self.folder.models_of_epochs():
            if file not in kept:
                file.unlink()
