"""Compare a folder of outputs with one of expected ones: python compare.py OUTPUTS EXPECTED."""

import sys
from pathlib import Path

import numpy as np

outputs, expected = map(Path, sys.argv[1:])
worst = 0.0
for file in sorted(expected.glob("*.npy")):
    found, wanted = np.load(outputs / file.name), np.load(file)
    if found.shape != wanted.shape:
        sys.exit(f"error: {file.name} has the shape {found.shape}, expected {wanted.shape}")
    error = np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted)
    print(f"{file.stem}: relative L2 error {error:.2g}")
    worst = max(worst, float(np.nan_to_num(error, nan=np.inf)))
if worst > 1e-2:
    sys.exit("error: more than FP16 explains (0.01)")
