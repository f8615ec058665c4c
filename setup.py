"""The part of the build that pyproject.toml cannot express: the Go extension."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent / "buildtools"))
from pcrm_build import Build, BuildNative, Distribution

# optional: if the extension cannot be built, setuptools must not look for the file.
setup(
    ext_modules=[Extension("pcrm._native._bridge", [], optional=True)],
    cmdclass={"build": Build, "build_ext": BuildNative},
    distclass=Distribution,
)
