"""`python -m latentgen.cli`: the command line, by the name that launchers take."""

import sys

from latentgen.cli import main

sys.exit(main())
