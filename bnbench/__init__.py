"""bnbench: evaluate, compare and fine-tune Bengali chat models.

`bnbench.metrics` is the part that any project can import alone (no torch). The command line is `bnbench --help`.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a checkout the other three packages are this folder's neighbours (see pyproject.toml, package-dir). Python started
# in the checkout's root finds this folder before the installed package, so it is told where the neighbours are.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and not (_Path(__file__).parent / "metrics").is_dir():
    __path__.append(str(_checkout))
