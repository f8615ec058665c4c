"""`python -m pcrm`, for launchers that start a module: `torchrun -m pcrm reward`, `accelerate launch -m pcrm dpo`."""

import sys

from .cli import main

sys.exit(main())
