"""The command python main.py -c CONFIG -o Global.mode=check_dataset|train|evaluate|export|predict."""

import sys

try:
    from paddlex_feat.cli import command

    command()
except KeyboardInterrupt:  # before a mode has begun; from then on the mode reports it
    sys.exit("Interrupted.")
