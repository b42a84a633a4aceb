"""Train a LeNet on a distilled file with nothing but torch and safetensors: its images, its steps, its weights if any.

python examples/train_on_distilled.py [DISTILLED.safetensors]
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open

shipped = Path(__file__).resolve().parent.parent / "gallery" / "mnist-fixed-10" / "distilled.safetensors"
with safe_open(sys.argv[1] if len(sys.argv) > 1 else shipped, framework="pt") as file:
    about = json.loads(file.metadata()["datadistill"])
    data = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

kind = about["weights"]["kind"]
if about["model"] != "lenet" or "learning_rates" not in data or kind == "random-pretrained":
    sys.exit(f"this file is for {kind} networks {about['model']}: this script trains a LeNet by the file's own steps")
images, targets = data["images"], data.get("soft_labels", data["labels"])
weights = {n.removeprefix("initial_weights."): w for n, w in data.items() if n.startswith("initial_weights.")}
if not weights:  # made for any start: draw one
    shapes = {"conv1": (6, images.shape[1], 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 400), "fc2": (84, 120)}
    for name, shape in {**shapes, "fc3": (len(about["classes"]), 84)}.items():
        weights[f"{name}.weight"] = torch.nn.init.xavier_normal_(torch.empty(shape))
        weights[f"{name}.bias"] = torch.zeros(shape[0])


def lenet(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network that these images were made for, at 28x28 or 32x32."""
    x = F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=2 if x.shape[-1] == 28 else 0))
    x = F.relu(F.conv2d(F.max_pool2d(x, 2), w["conv2.weight"], w["conv2.bias"]))
    x = F.relu(F.linear(F.max_pool2d(x, 2).flatten(1), w["fc1.weight"], w["fc1.bias"]))
    x = F.relu(F.linear(x, w["fc2.weight"], w["fc2.bias"]))
    return F.linear(x, w["fc3.weight"], w["fc3.bias"])


for step, rate in enumerate(data["learning_rates"]):
    batch = data["batches"][step % len(data["batches"])]
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    loss = F.cross_entropy(lenet(leaves, images[batch]), targets[batch])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    weights = {n: (w - rate * g).detach() for (n, w), g in zip(leaves.items(), gradients, strict=True)}

# The network is trained. Only a test needs real images, normalised as the file's metadata says.
try:
    import datadistill

    test = datadistill.load(about["dataset"]).test
    correct = (lenet(weights, test.images).argmax(1) == test.labels).float().mean()
    print(f"test accuracy {correct:.2%} after {len(data['learning_rates'])} steps on {len(images)} images")
except ModuleNotFoundError:
    print(f"trained in {len(data['learning_rates'])} steps; install datadistill, which holds MNIST, to test it")
