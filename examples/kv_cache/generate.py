"""Generate tokens with decoder.plan, whose caches stay where they are on the GPU."""

import torch
from decoder import FEATURES, HEADS, LENGTH, Decoder

from trt_native import Session

PROMPT, COUNT = [7, 42, 3, 11], 48

with Session("decoder.plan") as session:
    caches = {
        tensor.alias: torch.zeros(1, HEADS, LENGTH, FEATURES, device="cuda")
        for tensor in session.outputs
        if tensor.alias is not None
    }
    ids, token = list(PROMPT), None
    for index in range(len(PROMPT) + COUNT - 1):
        # The token stays on the GPU: the loop waits for nothing but the run.
        token = (
            torch.tensor(ids[index : index + 1], device="cuda") if index < len(PROMPT) else token
        )
        outputs = session.run(
            {"token": token, "index": torch.tensor([index], device="cuda"), **caches}
        )
        token = outputs["next"]
        if index >= len(PROMPT) - 1:
            ids.append(token)
    ids = [int(token) for token in ids]
    print("tokens:", *ids)
    same = all(outputs[f"new_{name}"] is cache for name, cache in caches.items())
    print(f"caches: {len(caches)}, each the array that was given: {same}")

expected = Decoder().generate(PROMPT, COUNT)
if ids != expected or not same:
    raise SystemExit(f"PyTorch has {expected}")
print("the same as PyTorch, which computes each token from the whole sequence")
