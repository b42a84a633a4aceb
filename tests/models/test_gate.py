"""Names from files: what is harmless passes, and what loads, fetches or reads anything is for the user to say."""

from pathlib import Path

import pytest

from datadistill.models.gate import Named, names_in, passed, refuse
from datadistill.utils.errors import RequestError

REACHING = {
    ("network", "net.py:f"): "which is code",
    ("network", "package.module:f"): "which is code",
    ("network", "timm:resnet18"): "which another library makes",
    ("network", "torchvision:resnet18"): "which another library makes",
    ("teacher", "../teacher.safetensors"): "which is a path",
    ("teacher", "teacher.safetensors"): "which is a path",
    ("teacher", "~"): "which is a path",
    ("dataset", "hf:OWNER/NAME"): "which would be fetched",
    ("dataset", "HF:OWNER/NAME"): "which would be fetched",
    ("dataset", "svhn"): "which is not on this machine and would be fetched",
    ("dataset", "photos"): "which is a path",
    ("dataset", "/photos"): "which is a path",
    ("dataset", "x.npz"): "which is a path",
    ("pool", "pool"): "which is a path",
    ("trajectories", "experts"): "which is a path",
}
HARMLESS = [
    ("network", "ConvNetD3W128BN"),
    ("network", "efficientnet-lite0"),
    ("network", "same"),
    ("scheme", "xavier"),
    ("augment", "color_crop_cutout_flip_scale_rotate"),
    ("kernels", "normalisation,max-pooling"),
    ("learning_rate", "0.01"),
    ("dataset", "MNIST"),
    ("dataset", "arrays"),
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DATADISTILL_DATA", raising=False)
    Path("photos").mkdir()


@pytest.mark.parametrize(("kind", "name"), REACHING)
def test_what_reaches_out_is_for_the_user_to_say(kind: str, name: str) -> None:
    assert Named(kind, name, "--x").reach() == REACHING[kind, name]


@pytest.mark.parametrize(("kind", "name"), HARMLESS)
def test_listed_names_pass(kind: str, name: str) -> None:
    assert Named(kind, name, "--x").reach() == ""


def test_files_of_the_run_itself_pass(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "out").symlink_to(tmp_path)
    for kind in ("pool", "trajectories", "dataset", "teacher"):
        assert Named(kind, "run/inside.npz", "--x").reach(inside=run) == ""
        assert Named(kind, "run/out/photos.npz", "--x").reach(inside=run) == "which is a path"


def test_official_files_that_are_there_pass(tmp_path: Path) -> None:
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (tmp_path / "data" / "svhn").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "svhn" / name).touch()
    assert passed("dataset", None, "svhn", data_root=tmp_path / "data") == "svhn"


def test_the_sentence_says_what_to_type() -> None:
    assert passed("network", "net.py:f", "evil.py:f") == "net.py:f"
    assert passed("network", None, "lenet") == "lenet"
    with pytest.raises(RequestError) as refused:
        passed("network", None, "net.py:f", file="x.safetensors")
    said = "x.safetensors names the network net.py:f, which is code: say --model net.py:f to use it"
    assert str(refused.value) == said
    with pytest.raises(RequestError) as refused:
        refuse("config.json", [*names_in({"matched_on": "a b.py:f", "seed": 3, "more": ["same", {"pool": "x:y"}]})])
    assert str(refused.value) == (
        "config.json names the network a b.py:f, which is code, and the more x:y, which is code: "
        "say --matched-on 'a b.py:f' --more x:y to use them"
    )


def test_names_of_classes_are_no_names_of_files() -> None:
    assert [*names_in({"attack": ["a/b", "c:d"], "seed": 1})] == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("ipc", "proportional:100"), ("device", "cuda:1"), ("budget", "1.5h"), ("attack", ["net.py:f", "b"])],
)
def test_options_that_name_nothing_are_let_through(option: str, value: object) -> None:
    refuse("config.json", names_in({option: value}))
