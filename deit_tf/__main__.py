"""`python -m deit_tf` is the command `deit-tf`."""

from deit_tf.cli import main

main()
