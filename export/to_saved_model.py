"""The older name of `deit-tf export saved-model`."""

import sys

from deit_tf.cli import main

main(["export", "saved-model", *sys.argv[1:]])
