from hrsa_lightning.io import resources
from hrsa_lightning.io.resources import PACKAGE, resolve_path, resource_files


def test_embedded_paths_point_into_the_package():
    assert resolve_path("embedded:tiny/x.jsonl") == str(PACKAGE / "assets/tiny/x.jsonl")
    assert resolve_path("some/file.jsonl") == "some/file.jsonl"


def test_the_wheels_folder_wins_over_the_checkouts(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "hrsa_lightning")
    checkout = tmp_path / "recipes"
    checkout.mkdir()
    (checkout / "b.yaml").touch()
    (checkout / "a.yaml").touch()
    assert resource_files("recipes") == {
        "a": checkout / "a.yaml",
        "b": checkout / "b.yaml",
    }
    shipped = tmp_path / "hrsa_lightning" / "_resources" / "recipes"
    shipped.mkdir(parents=True)
    (shipped / "c.yaml").touch()
    assert resource_files("recipes") == {"c": shipped / "c.yaml"}
