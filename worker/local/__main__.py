"""`python -m worker.local`: the servers alone, for working on one process by hand."""

import sys

from config.settings import SettingsError, load
from worker.local.up import main

try:
    sys.exit(main(load(), processes=[]))
except SettingsError as error:
    sys.exit(f"{error}")
