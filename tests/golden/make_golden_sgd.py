"""torch's SGD with Nesterov's momentum and weight decay, on the gradients of schedule_and_adamw.npz.

    python make_golden_sgd.py        # torch 2.13.0, numpy
"""

import numpy as np
import torch

reference = np.load("schedule_and_adamw.npz")
weight = torch.nn.Parameter(torch.tensor(reference["w0"], dtype=torch.float64))
optimizer = torch.optim.SGD([weight], lr=1e-2, momentum=0.9, weight_decay=1e-2, nesterov=True)
steps = []
for step, gradient in enumerate(reference["grads"]):
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 / (1 + step)
    weight.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    steps.append(weight.detach().numpy().copy())
np.savez_compressed("sgd_nesterov.npz", trajectory=np.stack(steps))
