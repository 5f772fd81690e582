"""`python -m monitor`."""

import sys

from monitor.command import main

sys.exit(main())
