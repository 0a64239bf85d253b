"""The same as `deit-tf export web`."""

import sys

from deit_tf.cli import main

main(["export", "web", *sys.argv[1:]])
