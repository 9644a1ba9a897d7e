"""`python -m oumi_kernel` is the program `oumi`."""

import sys

from oumi_kernel.cli import main

if __name__ == "__main__":
    sys.exit(main())
