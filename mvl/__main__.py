"""`python -m mvl` is the command `mvl`."""

import sys

from mvl.cli.main import main

sys.exit(main())
