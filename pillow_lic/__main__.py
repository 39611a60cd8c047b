"""``python -m pillow_lic``: the same as the command ``lic``."""

import sys

from pillow_lic.cli import main

sys.exit(main())
