"""`python -m alchemy` is the command line."""

import sys

from alchemy.cli import main

sys.exit(main())
