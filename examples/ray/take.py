"""Copy a plan and its manifest out of the store that a report of build-all names.

python take.py report.json MODEL PRECISION OUTPUT.plan
"""

import json
import sys
from pathlib import Path

from trt_native import Plan

report, model, precision, output = sys.argv[1:]
builds = json.loads(Path(report).read_text())["builds"]
(path,) = (b["path"] for b in builds if (b["model"], b["precision"]) == (model, precision))
Plan.load(path).save(output)
