"""`python -m hrsa_lightning COMMAND …`, the same as `hrsa COMMAND …`."""

import sys

from hrsa_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
