#!/usr/bin/env python3
"""Exit 0 if the address answers with success within 4 s: the health check of every image here."""

import sys
import urllib.error
import urllib.request

try:
    with urllib.request.urlopen(sys.argv[1], timeout=4):  # noqa: S310
        pass
except (OSError, urllib.error.URLError) as error:
    sys.exit(f"{sys.argv[1]}: {error}")
