#!/usr/bin/env python3
"""Run a LatentSync plan and the same U-Net in FP32 PyTorch on the same inputs; print the error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import environment  # noqa: F401  (ends with one line where the package is not installed)
import typer

from trt_native.cli.console import report_errors, stdout


@report_errors
def compare(
    plan: Path,
    checkpoint: Annotated[Path | None, typer.Argument()] = None,
    random_weights: Annotated[int | None, typer.Option(metavar="SEED")] = None,
    config: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[float, typer.Option(help="Largest relative L2 error that passes.")] = 0.02,
) -> None:
    """Compare at the optimal shapes of the plan's first profile."""
    import numpy as np
    import torch

    from trt_native.models.latentsync import load_unet
    from trt_native.runtime import Session

    unet, _ = load_unet(config=config, checkpoint=checkpoint, random_seed=random_weights)
    generator = np.random.default_rng(0)
    with Session(plan) as session:
        inputs = {}
        for tensor in session.engine.inputs:
            shape = tensor.profiles[0].opt if tensor.profiles else tensor.shape
            values = generator.standard_normal(shape, np.float32).astype(tensor.dtype)
            inputs[tensor.name] = np.full(shape, 500) if tensor.name == "timestep" else values
        found = session.run(inputs)["noise_pred"].astype(np.float64)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
    floats = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    with torch.inference_mode():
        expected = unet.to(device)(**floats).double().cpu().numpy()
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    stdout.print(f"relative L2 error against FP32 PyTorch: {error:.2e} (limit {limit:g})")
    if not error <= limit:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(compare)
