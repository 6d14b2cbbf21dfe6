from hrsa_lightning import shelf


def test_embedded_paths_point_into_the_package():
    assert shelf.resolve_path("embedded:tiny/x.jsonl") == str(shelf.PACKAGE / "assets/tiny/x.jsonl")
    assert shelf.resolve_path("some/file.jsonl") == "some/file.jsonl"


def test_the_wheels_shelf_wins_over_the_checkouts(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "PACKAGE", tmp_path / "hrsa_lightning")
    checkout = tmp_path / "recipes"
    checkout.mkdir()
    (checkout / "b.yaml").touch()
    (checkout / "a.yaml").touch()
    assert shelf.shelf_files("recipes") == {"a": checkout / "a.yaml", "b": checkout / "b.yaml"}
    shipped = tmp_path / "hrsa_lightning" / "_shelf" / "recipes"
    shipped.mkdir(parents=True)
    (shipped / "c.yaml").touch()
    assert shelf.shelf_files("recipes") == {"c": shipped / "c.yaml"}
