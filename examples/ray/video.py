"""Run a plan on every frame of the videos in a folder.

python video.py net.plan videos results
"""

import sys
from pathlib import Path

import av
import numpy as np
import ray.data

from trt_native.ray import predict

SIZE = 64  # of the network's images


def frames(file):
    """The frames of a video, a row each, decoded as they are needed."""
    with av.open(file["path"]) as container:
        for i, frame in enumerate(container.decode(video=0)):
            small = frame.reformat(width=SIZE, height=SIZE, format="rgb24").to_ndarray()
            yield {"file": file["path"], "frame": i, "pixels": small}


def normalized(batch):
    """Pixels as the network wants them: channels first, from 0 to 1."""
    image = np.ascontiguousarray(batch.pop("pixels").transpose(0, 3, 1, 2), np.float32) / 255
    return {**batch, "image": image}


def main(plan, folder, results):
    paths = sorted(str(path) for path in Path(folder).resolve().glob("*.mp4"))
    videos = ray.data.from_items([{"path": path} for path in paths])
    images = videos.flat_map(frames).map_batches(normalized, batch_size=64)
    found = predict(images, plan, batch_size=64, keep=["file", "frame"])
    found.write_parquet(str(Path(results).resolve()))


if __name__ == "__main__":
    main(*sys.argv[1:])
