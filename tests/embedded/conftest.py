"""Makes ``training`` (a folder of the repository, not of the package) importable however pytest was started."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
