"""Train a network on a distilled file with nothing but torch and safetensors: its weights, its images, its steps.

python examples/train_on_distilled.py [DISTILLED.safetensors]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

gallery = Path(__file__).resolve().parent.parent / "gallery"
data = load_file(sys.argv[1] if len(sys.argv) > 1 else gallery / "mnist-fixed-10" / "distilled.safetensors")
weights = {n.removeprefix("initial_weights."): w for n, w in data.items() if n.startswith("initial_weights.")}


def lenet(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network that these images were made for; 28x28 images."""
    x = F.max_pool2d(F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=2)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"])), 2).flatten(1)
    x = F.relu(F.linear(x, w["fc1.weight"], w["fc1.bias"]))
    x = F.relu(F.linear(x, w["fc2.weight"], w["fc2.bias"]))
    return F.linear(x, w["fc3.weight"], w["fc3.bias"])


for step, rate in enumerate(data["learning_rates"]):
    batch = data["batches"][step % len(data["batches"])]
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    loss = F.cross_entropy(lenet(leaves, data["images"][batch]), data["labels"][batch])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    weights = {n: (w - rate * g).detach() for (n, w), g in zip(leaves.items(), gradients, strict=True)}

# The network is trained. Only a test needs real images, normalised as the file's metadata says; here MNIST's.
try:
    import datadistill

    test = datadistill.load("mnist").test
    correct = (lenet(weights, test.images).argmax(1) == test.labels).float().mean()
    print(f"test accuracy {correct:.2%} after {len(data['learning_rates'])} steps on {len(data['images'])} images")
except ModuleNotFoundError:
    print(f"trained in {len(data['learning_rates'])} steps; install datadistill, which holds MNIST, to test it")
