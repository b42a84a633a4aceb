"""K-means on the images of one class."""

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.data.real import Split

STARTS = 3


def cluster_centres(split: Split, label: int, count: int, generator: torch.Generator) -> Float[Tensor, "{count} c h w"]:
    """Cluster centres of a class, from the best of a few random starts, on the CPU."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    images = split.take(split.of_class(label)).images.cpu()
    seed = int(torch.randint(2**31, (), generator=generator))
    # Several threads add up in the order in which they are ready: the last bits would differ from run to run.
    with threadpool_limits(limits=1):
        found = KMeans(count, n_init=STARTS, tol=0, random_state=seed).fit(images.flatten(1).numpy())
    return torch.from_numpy(found.cluster_centers_).to(images).view(-1, *images.shape[1:])
