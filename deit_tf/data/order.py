"""Which image stands where: the groups of a batch, and the rows of it that one worker makes.

A batch of B images falls into G groups of M, as one of the original's over G GPUs of M images. Row
r of it is number r % M of group r // M. What comes as number p of the stream of repeated images
goes to group p % G, so that the copies of an image meet in one group only where there are fewer
groups than copies.
Source: facebookresearch/deit samplers.py (RASampler: rank r takes the indices r, r + G, ...).
"""

from dataclasses import dataclass

import numpy as np

from deit_tf.config import AugmentConfig

Part = tuple[int, int]  # which share of every batch, counted from 0, and of how many
WHOLE: Part = (0, 1)


def group_size(batch_size: int, augment: AugmentConfig) -> int:
    """Images that share one draw of mixup and CutMix, and pair among themselves.

    Args:
        batch_size: Images of a global batch.
        augment: A resolved config.
    Returns:
        The largest divisor of the batch that is at most `mix_group`. Where nothing is mixed the
        whole batch, as groups would change nothing but its order.
    Raises:
        ValueError: If that is 1 of several images, which would be mixed with themselves alone.
    """
    if not augment.mixup and not augment.cutmix:
        return batch_size

    largest = max(1, min(augment.mix_group, batch_size))
    size = next(size for size in range(largest, 0, -1) if batch_size % size == 0)
    if size == 1 < batch_size:
        raise ValueError(
            f"`data.batch_size` {batch_size} falls into no equal groups of 2 to {largest} images "
            "to mix. Make it a multiple of `augment.mix_group`, or `augment.mix_group` as large as "
            f"the batch. Received: mix_group={augment.mix_group}"
        )
    return size


@dataclass(frozen=True)
class Rows:
    """Rows of every global batch.

    Args:
        batch_size: Images B of a global batch.
        group: Images M of a group, a divisor of it.
        start: The first row.
        stop: The row after the last.
    """

    batch_size: int
    group: int
    start: int
    stop: int

    @classmethod
    def of_part(cls, part: Part, batch_size: int, group: int | None = None) -> "Rows":
        """The rows that one worker of several needs.

        Raises:
            ValueError: If there is no such part, or the batch does not fall into that many.
        """
        index, count = part
        if not 0 <= index < count or batch_size % count:
            raise ValueError(
                f"`part` is (i, n) with 0 <= i < n, where n divides `data.batch_size` {batch_size}."
                f" Received: {part}"
            )
        share = batch_size // count
        return cls(batch_size, group or batch_size, index * share, (index + 1) * share)

    @property
    def count(self) -> int:
        """How many rows."""
        return self.stop - self.start

    @property
    def groups(self) -> range:
        """The groups that hold any of them."""
        return range(self.start // self.group, -(-self.stop // self.group))

    def in_whole_groups(self) -> "Rows":
        """These rows and all others of their groups, which are mixed with them."""
        start, stop = self.groups.start * self.group, self.groups.stop * self.group
        return Rows(self.batch_size, self.group, start, stop)

    def places(self) -> np.ndarray:
        """Where each row stands in its batch's part of the stream, int64 [count]."""
        rows = np.arange(self.start, self.stop)
        return rows % self.group * (self.batch_size // self.group) + rows // self.group
