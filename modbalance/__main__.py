"""`python -m modbalance`."""

import sys

from modbalance.cli import main

sys.exit(main())
