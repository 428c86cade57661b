"""`python -m helpers.running --params cpu`: the main job, or other notebooks, without a browser."""

import sys

from helpers.running.run import main

sys.exit(main())
