"""`python -m pcrm.swift` prints the path of the plugin, for ms-swift's `--external_plugins`."""

from pathlib import Path

print(Path(__file__).with_name("plugin") / "pcrm_plugin.py")
