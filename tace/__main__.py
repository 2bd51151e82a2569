"""`python -m tace`."""

import sys

from tace.cli import main

if __name__ == "__main__":
    sys.exit(main())
