from pathlib import Path

from tiny.stdlib import read_functions

MODULE = '''
class Box:
    @property
    def size(self):
        """Return the size. It is never negative."""
        return len(self.items)

def walk(node):
    return [walk(child) for child in node]
'''


def test_functions_come_with_summary_and_an_anonymous_body(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(MODULE)
    size, walk = read_functions(tmp_path)
    assert (size.module, size.qualname) == ("package", "Box.size")
    assert size.summary == "Return the size"
    assert size.body == "def f(self):\n    return len(self.items)"
    assert "Return the size" in size.source
    assert walk.summary == ""


def test_foreign_copyright_and_tests_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "case.py").write_text(MODULE)
    (tmp_path / "other.py").write_text("# Copyright (c) Somebody Else\n" + MODULE)
    (tmp_path / "own.py").write_text("# Copyright 2001 Python Software Foundation\n" + MODULE)
    assert {function.module for function in read_functions(tmp_path)} == {"own"}
