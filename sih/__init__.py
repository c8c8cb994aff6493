"""sih: when do semantic induction heads form during training, and does in-context learning follow?

Data flows one way through the rooms:
config -> checkpoints -> models -> texts -> scores -> results -> emergence -> tracker | analysis.
The commands at the top level, and the rooms running and jobs, use all of them. `sih.open` reads a run in a notebook.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sih.opened import OpenedRun

__version__ = "0.2.0"
__all__ = ["CONF", "open"]

# Read by OpenMP when torch is imported, which comes later in every command and is inherited by its workers. Threads
# that wait for each other otherwise spin, and steps take many times as long when other processes need the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Read by numpy: its matrices here are small, and threads of its own only get in the way of ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# In a wheel, conf/, analysis/ and jobs/ are inside this package; in a checkout they are next to it.
_ROOT = Path(__file__).resolve().parent
if not (_ROOT / "conf").is_dir():
    _ROOT = _ROOT.parent
    __path__.append(str(_ROOT))
CONF = _ROOT / "conf"


def open(folder: str | Path) -> "OpenedRun":
    """Open the run in a folder, such as runs/pythia-410m, as tables and series for a notebook; see sih.opened.

    Raises:
        SihError: the folder is not a run, or has another version's layout.
    """
    from sih.opened import OpenedRun

    return OpenedRun(folder)
