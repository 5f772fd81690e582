"""`python -m klotski`; nothing heavy is imported before the config is known to be good."""

import sys

from klotski.app import main

sys.exit(main())
