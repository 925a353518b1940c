"""The tests of this folder share the modules that their long forms are."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
