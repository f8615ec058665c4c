"""`python -m pcrm.llamafactory train config.yaml`, a form that every launcher accepts."""

import sys

from ..cli import main

sys.exit(main(["llamafactory", *sys.argv[1:]]))
