"""The largest error of the self-check for every class of model that is tried, on small random models of tests/.

    python benchmarks/selfcheck.py

Errors are relative to the largest number compared, those of attention absolute; a sweep refuses more than 1e-4.
"""

import sys
from pathlib import Path

import torch
import transformers

from sih.errors import SihError
from sih.models.model import Model
from sih.models.observing import check_observable
from sih.models.selfcheck import self_check

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from architectures import ARCHITECTURES, UNSEEN, made, of


def main() -> None:
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, float32\n")
    print("| model | class | largest error | of |\n|---|---|---|---|")
    for name in ARCHITECTURES:
        module = made(name)
        errors = self_check(Model(module, torch.device("cpu")))
        part = max(errors, key=lambda part: errors[part])
        print(f"| {name} | {type(module).__name__} | {errors[part]:.1e} | {part} |", flush=True)
    for name, options in UNSEEN.items():
        module = of(name, **options)
        try:
            check_observable(type(module))
            raise SystemExit(f"{name} is measured, though its attention cannot be seen")
        except SihError:
            print(f"| {name} | {type(module).__name__} | refused: its attention cannot be observed | |")


if __name__ == "__main__":
    main()
