import subprocess
import sys
from pathlib import Path

import pytest

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models import paths
from hrsa_lightning.models.paths import check_available, resolve_backbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "config.json").write_text("{}")
    content = (2).to_bytes(8, "little") + b"{}"
    (tmp_path / "backbone" / "model.safetensors").write_bytes(content)
    return tmp_path / "backbone"


def test_existing_folder_wins_over_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_backbone("owner/name") == "owner/name"
    (folder.parent / "owner").mkdir()
    folder.rename(folder.parent / "owner" / "name")
    monkeypatch.chdir(folder.parent)
    assert resolve_backbone("owner/name") == str(folder.parent / "owner" / "name")


@pytest.mark.parametrize("hub_id", ["gpt2", "Qwen/Qwen3-0.6B-Base", "hkust-nlp/Qwen-2.5-0.5B_x"])
def test_hub_id_is_not_looked_for(hub_id: str) -> None:
    assert resolve_backbone(hub_id) == hub_id


def test_missing_folder_beside_others_is_no_hub_id(folder: Path, monkeypatch) -> None:
    (folder.parent / "owner").mkdir()
    monkeypatch.chdir(folder.parent)
    with pytest.raises(BackboneError, match=r"'owner/nmae': no such folder in .*owner; to take it"):
        resolve_backbone("owner/nmae")


def test_hub_ids_that_cannot_be_downloaded_are_answered(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(paths.constants, "HF_HUB_CACHE", str(folder.parent))
    monkeypatch.setattr(paths.constants, "HF_HUB_OFFLINE", True)
    check_available(folder)
    with pytest.raises(BackboneError, match=r"'owner/name': neither a folder nor in the hub's"):
        check_available("owner/name")
    (folder.parent / "models--owner--name").mkdir()
    check_available("owner/name")
    monkeypatch.setattr(paths.constants, "HF_HUB_OFFLINE", False)
    check_available("other/name")


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_backbone("~/backbone") == str(folder)


@pytest.mark.parametrize(
    "path",
    [
        "./missing",
        "../missing",
        "~/missing-backbone",
        "/missing",
        "a/b/c",
        "runs/",
        "-x",
        "",
        "größe",
        "a..b",
    ],
)
def test_missing_folder_is_no_hub_id(path: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError) as caught:
        resolve_backbone(path)
    assert repr(path) in str(caught.value) or "has no config.json" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_file_is_refused(folder: Path) -> None:
    with pytest.raises(BackboneError, match=r"is a file; expected a folder or a hub id"):
        resolve_backbone(folder / "config.json")


def test_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"has no config\.json$"):
        resolve_backbone(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"has no config\.json \(a LoRA adapter: give the"):
        resolve_backbone(folder)


def test_broken_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"config\.json: not valid JSON"):
        resolve_backbone(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"has no \*\.safetensors file"):
        resolve_backbone(folder)


def test_embedded_backbones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "assets" / "tiny").mkdir(parents=True)
    folder.rename(folder.parent / "assets" / "tiny" / "base")
    monkeypatch.setattr(paths, "_ASSETS", folder.parent / "assets")
    expected = str(folder.parent / "assets" / "tiny" / "base")
    assert resolve_backbone("embedded:tiny/base") == expected
    for name in ("tiny/bsae", "../../elsewhere", "tiny/../.."):
        with pytest.raises(BackboneError, match=r"expected one of: embedded:tiny/base$"):
            resolve_backbone(f"embedded:{name}")


def test_asking_costs_no_torch() -> None:
    code = (
        "import sys, hrsa_lightning.models; from hrsa_lightning.models import resolve_backbone;"
        "slow = {'torch', 'transformers', 'peft', 'lightning'} & set(sys.modules);"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
