"""sih: when do semantic induction heads form during training, and does in-context learning follow?

Data flows one way through the rooms:
config -> datafiles | corpus -> checkpoints -> model -> relations | texts -> heads | icl -> store
-> tracker | emergence -> analysis. Only `sweep` and the other command-line modules know them all.
"""

from pathlib import Path

__version__ = "0.1.0"

# In a wheel, conf/, analysis/ and jobs/ lie inside this package; in a checkout they stand beside it.
_ROOT = Path(__file__).resolve().parent
if not (_ROOT / "conf").is_dir():
    _ROOT = _ROOT.parent
    __path__.append(str(_ROOT))
CONF = _ROOT / "conf"
