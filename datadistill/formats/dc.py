"""`res_METHOD_DATASET_MODEL_Nipc.pt` of the code of DC, DSA and DM (Zhao et al. 2021).

A dict: `data` is a list with [images, labels] for each experiment, `accs_all_exps` accuracies by network.
"""

from pathlib import Path

from datadistill.distilled import DistilledData
from datadistill.formats.base import Foreign, take_pair
from datadistill.formats.pickles import read_pickle, write_pickle
from datadistill.utils.errors import require


def write_dc(distilled: DistilledData, path: Path) -> None:
    """One experiment, without accuracies."""
    write_pickle(path, {"data": [[distilled.images.cpu(), distilled.labels.cpu()]], "accs_all_exps": {}})


def read_dc(path: Path) -> list[Foreign]:
    """One set for each experiment.

    Raises:
        DamagedFileError: the file is damaged, or holds something else.
    """
    content = read_pickle(path)
    require(isinstance(content, dict) and isinstance(content.get("data"), list), "it has no list 'data'")
    sets = []
    for number, entry in enumerate(content["data"], 1):
        pair = isinstance(entry, list | tuple) and len(entry) == 2
        require(pair, f"experiment {number} is not images and labels")
        images, labels, soft = take_pair(entry[0], entry[1], f" of experiment {number}")
        sets.append(Foreign(images, labels, soft_labels=soft))
    require(len(sets) > 0, "it holds no experiment")
    return sets
