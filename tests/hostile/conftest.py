"""`make fuzz` is run from the repository's root and is no installed package: the root goes on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
