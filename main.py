"""python main.py -c CONFIG -o Global.mode=check_dataset|train|evaluate|export|predict"""

import sys

from paddlex_feat.cli import main

if __name__ == "__main__":
    sys.exit(main())
