"""The prior-constrained loss for ms-swift's `--external_plugins`: `python -m pcrm.swift` prints the path of this file.

ms-swift puts the folder of a plugin first on `sys.path`, so this one has no other module.
"""

from pcrm.swift.register import register

register()
