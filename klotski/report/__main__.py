"""`python -m klotski.report`, the same as `klotski-report`."""

import sys

from klotski.report.command import main

sys.exit(main())
