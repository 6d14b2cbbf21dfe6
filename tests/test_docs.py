"""The documentation does what it says: its Python runs, its commands parse, its links lead on."""

import argparse
import dataclasses
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
import yaml

from hrsa_lightning.cli import find_command
from hrsa_lightning.config.schema import (
    AlignmentConfig,
    ArmConfig,
    Config,
    LossConfig,
    SIGRegConfig,
)

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)\n")


def blocks(text: str, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(text) if kind == language]


def commands(text: str) -> list[list[str]]:
    """Arguments of every command of this package, its module first, without what starts it."""
    found = []
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "hrsa" in line else []
            for index, word in enumerate(words):
                if word.startswith("hrsa_lightning.") and words[index - 1] == "-m":
                    found.append([word, *words[index + 1 :]])
                elif word == "hrsa" and all("=" in before for before in words[:index]):
                    found.append(["hrsa_lightning.cli", *words[index + 1 :]])
    return found


COMMANDS = [(page, words) for page, text in PAGES.items() for words in commands(text)]


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
@pytest.mark.filterwarnings("ignore::hrsa_lightning.errors.HRSAWarning")
@pytest.mark.filterwarnings("ignore::hrsa_lightning.functional.SimilarityWarning")
@pytest.mark.filterwarnings("ignore:.*TensorBoard.*")
def test_python_runs_as_it_stands(page, tmp_path, monkeypatch):
    """Blocks of a page share a namespace; one that names a file of the package becomes it."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for code in blocks(PAGES[page], "python"):
        name = FILE_NAME.match(code)
        if name and name[1].startswith("hrsa_lightning/"):
            module = ModuleType(name[1].removesuffix(".py").replace("/", "."))
            monkeypatch.setitem(sys.modules, module.__name__, module)
            run(code, page, module.__dict__)
        else:
            run(code, page, namespace)
    for name, value in list(namespace.items()):
        if name.startswith("test_"):
            value()
    if page == "docs/howto/lightning.md":
        # Similarity to the start falls by nature: its EarlyStopping waits until it no longer does.
        patience, epochs = namespace["settled"].patience, namespace["trainer"].current_epoch
        assert patience + 1 < epochs < namespace["trainer"].max_epochs


def run(code: str, page: str, namespace: dict[str, Any]) -> None:
    # Line numbers of an error are those of the page.
    before = PAGES[page][: PAGES[page].index(code)].count("\n")
    exec(compile("\n" * before + code, page, "exec"), namespace)


class Parsed(BaseException):
    """Ends a command whose arguments were understood, before it does anything."""


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[" ".join(words)[:60] for _, words in COMMANDS]
)
def test_commands_are_understood(page, words, tmp_path, monkeypatch, capsys):
    """`train` has its settings resolved as well; the page's YAML files are there."""
    monkeypatch.chdir(tmp_path)
    for code in blocks(PAGES[page], "yaml"):
        if name := FILE_NAME.match(code):
            Path(name[1]).write_text(code, encoding="utf-8")
    module, *arguments = words
    if module == "hrsa_lightning.cli":
        module, *arguments = f"hrsa_lightning.{arguments[0]}", *arguments[1:]
    main = find_command(module.removeprefix("hrsa_lightning.")).main
    if "--help" in arguments:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    elif fetched := re.search(r"recipe=(/data/\S+)/recipe\.yaml", " ".join(arguments)):
        assert re.search(rf"fetch .* --(out|root) {fetched[1]}\b", PAGES[page]), "not fetched"
    elif module == "hrsa_lightning.train":
        assert main([*arguments, "--print-config"]) == 0, capsys.readouterr().err
    else:
        parse = argparse.ArgumentParser.parse_intermixed_args

        def parse_and_stop(*given: Any, **named: Any) -> NoReturn:
            parse(*given, **named)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", parse_and_stop)
        with pytest.raises(Parsed):
            main(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Files exist, and sections are headings of the page that they are on."""
    for target, section in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)]*))?\)", PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if section:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            known = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings]
            assert section in known, f"{target}#{section}"


def test_nothing_is_installed_by_a_name_that_no_index_has():
    """Of this package itself; from a clone, extras are `.[NAME]`."""
    files = [p for name in ("hrsa_lightning", "recipes", "docs") for p in (ROOT / name).rglob("*")]
    texts = [p for p in [*files, ROOT / "README.md"] if p.suffix in (".py", ".md", ".yaml")]
    pattern = re.compile(r"pip install [^\n]*hrsa-lightning")
    assert [str(p) for p in texts if pattern.search(p.read_text(encoding="utf-8"))] == []


def test_every_page_is_in_the_site():
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml, whose tags name Python objects of its extensions."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    listed = set(re.findall(r"[\w/-]+\.md", str(site["nav"])))
    assert listed == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}


REFERENCES = {
    module: text
    for page, text in PAGES.items()
    if page.startswith("docs/reference/")
    for module in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
}


def test_the_reference_has_every_public_package():
    packages = "callbacks data functional losses metrics models modules plots similarity"
    assert {f"hrsa_lightning.{name}" for name in packages.split()} <= set(REFERENCES)


@pytest.mark.parametrize("module", REFERENCES)
def test_the_reference_lists_every_public_name(module):
    """Constants aside; a page reads well where it is not built, too."""
    names = getattr(importlib.import_module(module), "__all__", ())
    listed = re.findall(r"^\| `(\w+)` \|", REFERENCES[module], re.MULTILINE)
    assert [name for name in names if not name.isupper() and name not in listed] == []
    assert [name for name in listed if names and name not in names] == []


PUBLIC = [
    (module, name)
    for module, text in REFERENCES.items()
    for name in re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_every_field_argument_and_return_value_is_documented(module, name):
    value = getattr(importlib.import_module(module), name)
    assert sorted(gaps_of_class(value) if inspect.isclass(value) else gaps_of_function(value)) == []


def test_what_is_not_documented_is_found():
    class Pair(NamedTuple):
        """Two.

        Attributes:
            left: One.
        """

        left: int
        right: int

        def scaled(self, factor: int) -> "Pair":
            """Both, times something."""
            return self

    def scale(x: torch.Tensor, by: float) -> torch.Tensor:
        """Multiply.

        Args:
            x: (n,) numbers.

        Returns:
            The product.
        """
        return x * by

    assert gaps_of_class(Pair) == {"right", "scaled(factor)"}
    assert gaps_of_function(scale) == {"by", "shape of what it returns"}


def section(doc: str | None, *titles: str) -> str:
    """Text of the Google sections with these titles."""
    pattern = rf"^(?:{'|'.join(titles)}):\n((?: +.*\n|\n)+)"
    return "".join(re.findall(pattern, inspect.cleandoc(doc or "") + "\n", re.MULTILINE))


def documented(doc: str | None) -> set[str]:
    """Names that have a line of their own, as an argument or a field."""
    return set(re.findall(r"^    (\w+):", section(doc, "Args", "Attributes"), re.MULTILINE))


def arguments_of(function: Any) -> set[str]:
    found = inspect.signature(function).parameters.values()
    return {p.name for p in found if p.name not in ("self", "cls") and p.kind is not p.VAR_KEYWORD}


def gaps_of_function(function: Any) -> set[str]:
    gaps = arguments_of(function) - documented(function.__doc__)
    returned = str(inspect.signature(function).return_annotation)
    says = section(function.__doc__, "Returns", "Yields")
    if not says and returned not in ("None", str(Iterator[None])):  # what a `with` block gets
        gaps.add("Returns")
    if "Tensor" in returned and not re.search(r"\(.*\)|scalar", says):
        gaps.add("shape of what it returns")
    return gaps


def gaps_of_class(cls: Any) -> set[str]:
    """Fields and arguments have a line each; a method's arguments may be words of its sentence."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith(("hrsa_lightning", "tests"))]
    others = [base for base in cls.__mro__[1:] if base is not object]
    known = set().union(*(documented(base.__doc__) for base in ours))
    if dataclasses.is_dataclass(cls):
        gaps = {field.name for field in dataclasses.fields(cls)} - known
    elif hasattr(cls, "_fields") or getattr(cls, "_is_protocol", False):
        gaps = set(inspect.get_annotations(cls)) - known
    elif "__init__" in vars(cls):
        gaps = arguments_of(cls.__init__) - known
    else:
        gaps = set()
    for name, member in vars(cls).items():
        method = getattr(member, "fget", getattr(member, "__func__", member))
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        if any(name in vars(base) for base in others):  # documented there
            continue
        words = re.findall(r"\w+", method.__doc__ or "")
        gaps |= {f"{name}({each})" for each in arguments_of(method) if each not in words}
        if not words:
            gaps.add(name)
    return {name for name in gaps if not name.startswith("_")}


def test_the_table_of_recipe_keys_is_complete():
    text = PAGES["docs/reference/recipes.md"]
    recipe = Config(
        arms={"NAME": ArmConfig()},
        loss=LossConfig(sigreg=SIGRegConfig(), alignment=AlignmentConfig()),
    )
    keys = {key.removeprefix("trainer.") for key in dotted(dataclasses.asdict(recipe))}
    assert sorted(key for key in keys if f"`{key}`" not in text) == []
    listed = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    switches = {"arms", "model.lora", "loss.sigreg", "loss.alignment"}
    assert sorted(listed - keys - switches) == []


def dotted(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_figures_of_the_comparison_were_measured():
    section = PAGES["docs/alternatives.md"].split("## Speed and memory")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    measured = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    figures = {cell for row in rows for cell in row.strip("| ").split(" | ")[-2:]} - {"---"}
    numbers = {cell for cell in figures if re.fullmatch(r"[\d.,]+", cell)}
    assert len(numbers) > 10
    assert {number for number in numbers if f"| {number} |" not in measured} == set()
