"""`python -m pcrm.openrlhf train_rm ...`, a form that every launcher accepts."""

import sys

from ..cli import main

sys.exit(main(["openrlhf", *sys.argv[1:]]))
