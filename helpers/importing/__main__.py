"""`python -m helpers.importing squad train.json --out data/mine`: see `helpers.importing.importer`."""

import sys

from helpers.importing.importer import main

sys.exit(main())
