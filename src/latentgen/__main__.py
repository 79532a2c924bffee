"""`python -m latentgen`: the command line."""

import sys

from latentgen.cli import main

sys.exit(main())
