"""The older name of `deit-tf export tflite`."""

import sys

from deit_tf.cli import main

main(["export", "tflite", *sys.argv[1:]])
