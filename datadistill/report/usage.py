"""Use of a distilled file with plain torch, in some eight lines."""

import json

from datadistill.distilled import DistilledData
from datadistill.training.carried import recipe_of
from datadistill.utils.errors import RequestError, plain

_OPEN = """\
from safetensors.torch import load_file

data = load_file({file})  # images as a network is fed them, {shape}
"""
_HELD = """\
held = {name.removeprefix("initial_weights."): w for name, w in data.items() if name.startswith("initial_weights.")}
network.load_state_dict(held, strict=False)  # your module, from the weights that the images were made for
"""
_STEPS = """\
for step, rate in enumerate(data["learning_rates"]):
    batch = data["batches"][step % len(data["batches"])]
    loss = torch.nn.functional.cross_entropy(network(data["images"][batch]), data["{labels}"][batch])
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    for weight, gradient in zip(network.parameters(), gradients):
        weight.data -= rate * gradient
"""
_TRAINED = """\
pairs = torch.utils.data.TensorDataset(data["images"], data["{labels}"])
# then train your network on them: {recipe}
for images, targets in torch.utils.data.DataLoader(pairs, batch_size={batch}, shuffle=True):
    ...  # one of {epochs} epochs
"""


def use_of(data: DistilledData, file: str) -> str:
    """Python code that trains `network` on the data; only what a file's numbers and a fixed text say is in it."""
    labels = "labels" if data.soft_labels is None else "soft_labels"
    code = "import torch\n" + _OPEN.format(file=json.dumps(file), shape=list(data.images.shape))
    code += _HELD if data.initial_weights else ""
    try:
        recipe = recipe_of(data)
    except RequestError as error:
        return code + f"# {plain(str(error))}\n"
    if recipe.takes_own_steps:
        return code + _STEPS.format(labels=labels)
    batch = len(data.labels) if recipe.batch == "stored" else recipe.batch
    return code + _TRAINED.format(labels=labels, recipe=recipe, batch=batch, epochs=recipe.epochs)
