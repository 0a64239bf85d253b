"""The older name of `deit-tf export check`."""

import sys

from deit_tf.cli import main

main(["export", "check", *sys.argv[1:]])
