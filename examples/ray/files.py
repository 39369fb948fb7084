"""Run a plan on every image in a folder of .npz files.

python files.py net.plan samples results
"""

import sys
from pathlib import Path

import numpy as np
import ray.data

from trt_native.ray import predict


def rows(file):
    """The images of a file, a row each. Ray reads many files at a time."""
    with np.load(file["path"]) as arrays:
        for i, (image, label) in enumerate(zip(arrays["image"], arrays["label"], strict=True)):
            yield {"file": file["path"], "index": i, "label": int(label), "image": image}


def main(plan, folder, results):
    paths = sorted(str(path) for path in Path(folder).resolve().glob("*.npz"))
    images = ray.data.from_items([{"path": path} for path in paths]).flat_map(rows)
    found = predict(images, plan, keep=["file", "index", "label"])
    found.write_parquet(str(Path(results).resolve()))


if __name__ == "__main__":
    main(*sys.argv[1:])
