"""The examples are scripts, not a package: their folders go on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "tiny_scenes"))
