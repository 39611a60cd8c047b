"""``python -m pillow_lic.cli``, e.g. under torchrun."""

import sys

from pillow_lic.cli import main

sys.exit(main())
