"""``python -m sparsemask``: the same as the ``sparsemask`` command."""

import sys

from sparsemask.cli.main import main

sys.exit(main())
