"""``python -m d2_ext COMMAND ...``."""

import sys

from d2_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
