"""The `.keras` files that later code must load.

Written by the code of e5ff270: run it with a checkout of that on PYTHONPATH.
"""

from pathlib import Path

import deit_tf
import keras
import numpy as np

HERE = Path(__file__).parent
SMALL = dict(image_size=(16, 24), patch_size=8, embed_dim=12, depth=1, num_heads=3)
keras.utils.set_random_seed(0)
image = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype("float32")
mask = np.float32([[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 0]])

student = deit_tf.create_model("deit_test", num_classes=5, **SMALL)
student.save(HERE / "older_student.keras")
masked = deit_tf.create_masked_model("deit_test", **SMALL)
masked.compile(keras.optimizers.AdamW(1e-3))
masked.fit({"image": image, "mask": mask}, verbose=0)
masked.save(HERE / "older_masked.keras")
np.savez(
    HERE / "older_files.npz",
    image=image,
    mask=mask,
    logits=np.asarray(student(image)),
    reconstruction=np.asarray(masked({"image": image, "mask": mask})),
)
