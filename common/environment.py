"""Ends a script in one sentence where the packages are not installed that everything needs.

A script imports this first. In a terminal where the environment is not activated the next import
would end in a traceback that names a package, but not what to do.
"""

import sys

from common.packages import missing_packages

if missing := missing_packages():
    print(f"error: {missing}", file=sys.stderr)
    sys.exit(2)
