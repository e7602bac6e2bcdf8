"""`python -m fastguide.cli`, where the installed script is not on the path."""

import sys

from fastguide.cli import main

if __name__ == "__main__":
    sys.exit(main())
