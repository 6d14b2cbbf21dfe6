"""Choose layers of any module by name or glob, and give them short names for charts."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from hrsa_lightning.errors import ConfigError

Layers = Sequence[str] | Mapping[str, str] | None
"""Names or globs, also by a short name of one's own; `None` for `default_layers`."""

NUM_DEFAULT_LAYERS = 8

# Name parts that wrappers slip in between a module and its children.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class LayerSelection:
    """Which values of a forward pass are wanted.

    Attributes:
        modules: Short name to submodule, in the order asked for.
        outputs: Short name to the key of the forward's result, `None` for the result as a whole.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    outputs: dict[str, str | None] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All short names: layers first, then outputs."""
        return [*self.modules, *self.outputs]


def clean_name(name: str) -> str:
    """A module's name without the parts that `torch.compile`, FSDP and checkpointing add.

    Example:
        >>> clean_name("encoder._orig_mod.layers.0")
        'encoder.layers.0'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def default_layers(module: nn.Module) -> tuple[list[str], str]:
    """The output and, of the largest stack of equal layers, at most eight evenly spread.

    Returns:
        Patterns for `select_layers`, and a sentence where layers of the stack are left out.

    Example:
        >>> default_layers(nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)]))
        (['*', 'output'], '')
        >>> default_layers(nn.ModuleDict({"h": nn.ModuleList([nn.ReLU()] * 20)}))[0][-3:]
        ['h.[1][6]', 'h.[1][9]', 'output']
    """
    stacks = [
        (sum(p.numel() for p in part.parameters()), len(part), clean_name(name))
        for name, part in module.named_modules()
        if isinstance(part, (nn.ModuleList, nn.Sequential))
        and len(part) > 1
        and len({type(layer) for layer in part}) == 1
    ]
    if not stacks:
        return ["output"], ""
    _, depth, name = max(stacks, key=lambda stack: stack[:2])
    prefix = f"{name}." if name else ""
    if depth <= NUM_DEFAULT_LAYERS:
        return [f"{prefix}*", "output"], ""
    last = NUM_DEFAULT_LAYERS - 1
    numbers = [round(place * (depth - 1) / last) for place in range(NUM_DEFAULT_LAYERS)]
    # As a glob a number gets the short name that it has among all layers of the stack.
    globs = ["".join(f"[{digit}]" for digit in str(number)) for number in numbers]
    note = (
        f"layers: the output and {NUM_DEFAULT_LAYERS} of the {depth} layers of {name!r} are "
        f"compared; for all, give layers=['{prefix}*', 'output']"
    )
    return [*(f"{prefix}{glob}" for glob in globs), "output"], note


def select_layers(
    module: nn.Module,
    patterns: Sequence[str] | Mapping[str, str],
    *,
    relative: bool = False,
    owner: str = "the module",
) -> LayerSelection:
    """Resolve layer patterns against the submodules of `module`.

    A pattern is compared part by part: `*`, `?` and `[...]` stay within one part between dots, and
    `**` stands for any number of parts. `output` is what the forward call returns, `output.KEY`
    one entry of a returned mapping. A short name is what the wildcards stand for: `backbone.*`
    names a child `stem` `stem`, and the children `0`, `1`, … of `encoder.layers.*` get the word
    before them, `layer_0`, `layer_1`, …. A pattern without wildcards keeps its own name, as do
    matches whose short names are equal. A mapping gives short names of one's own.

    Args:
        module: The module whose submodules are searched.
        patterns: Names or globs, or a mapping from short names to these; several matches of one
            are numbered `NAME_0`, `NAME_1`, ….
        relative: When a pattern matches nothing, try it without its first parts as well, so that
            `backbone.layers.*` finds `layers.*` in a bare backbone.
        owner: What to call `module` in an error.

    Returns:
        The selection, each layer once.

    Raises:
        ConfigError: When a pattern matches nothing.

    Example:
        >>> net = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
        >>> select_layers(net, ["blocks.*", "output"]).names
        ['block_0', 'block_1', 'output']
        >>> select_layers(net, {"start": "blocks.0", "end": "output"}).names
        ['start', 'end']
    """
    if isinstance(patterns, Mapping):
        return _named_layers(module, patterns, relative=relative, owner=owner)
    submodules = {clean_name(name): part for name, part in module.named_modules() if name}
    found: dict[str, str] = {}  # full name -> short name
    outputs: dict[str, str | None] = {}
    for pattern in patterns:
        if pattern == "output" or pattern.startswith("output."):
            outputs[pattern] = pattern.partition(".")[2] or None
            continue
        matches = _matches(pattern, submodules)
        rest = pattern
        while relative and not matches and _has_literal(rest := rest.partition(".")[2]):
            matches = _matches(rest, submodules)
        if not matches:
            raise ConfigError(_no_match(pattern, list(submodules), owner))
        for full, short in matches.items():
            found.setdefault(full, short)
    shorts = list(found.values())
    modules = {
        (short if shorts.count(short) == 1 else full): submodules[full]
        for full, short in found.items()
    }
    return LayerSelection(modules, outputs)


def _named_layers(
    module: nn.Module, patterns: Mapping[str, str], *, relative: bool, owner: str
) -> LayerSelection:
    chosen = LayerSelection()
    for name, pattern in patterns.items():
        found = select_layers(module, [pattern], relative=relative, owner=owner)
        parts = [*found.modules.values()]
        for number, part in enumerate(parts):
            chosen.modules[name if len(parts) == 1 else f"{name}_{number}"] = part
        if found.outputs:
            (chosen.outputs[name],) = found.outputs.values()
    return chosen


def _matches(pattern: str, names: dict[str, nn.Module]) -> dict[str, str]:
    regex, wildcards = _compile(pattern)
    matches = {}
    for name in names:
        if (match := regex.fullmatch(name)) is not None:
            parts = [
                _short_part(match[f"w{index}"], before) for index, before in enumerate(wildcards)
            ]
            matches[name] = ".".join(parts) if parts else name
    return matches


def _compile(pattern: str) -> tuple[re.Pattern[str], list[str]]:
    """The regular expression of a pattern and, for each wildcard part, the literal before it."""
    regex, before = "", ""
    wildcards: list[str] = []
    parts = pattern.split(".")
    for position, part in enumerate(parts):
        dot = r"\." if position < len(parts) - 1 else ""
        if part == "**":
            regex += r"(?:[^.]+\.)*" if dot else r"[^.]+(?:\.[^.]+)*"
            before = ""
        elif any(character in part for character in "*?["):
            regex += f"(?P<w{len(wildcards)}>{_glob(part)}){dot}"
            wildcards.append(before)
            before = ""
        else:
            regex += re.escape(part) + dot
            before = part
    return re.compile(regex), wildcards


def _has_literal(pattern: str) -> bool:
    """Whether a part is spelled out; a pattern of wildcards alone would match anything."""
    return any(part and not set("*?[") & set(part) for part in pattern.split("."))


def _glob(part: str) -> str:
    pieces = re.findall(r"\[!?[^\]]+\]|.", part)
    translated = {"*": "[^.]*", "?": "[^.]"}
    return "".join(
        translated.get(piece) or (piece.replace("[!", "[^") if len(piece) > 1 else re.escape(piece))
        for piece in pieces
    )


def _short_part(matched: str, before: str) -> str:
    if not matched.isdigit() or not before:
        return matched
    singular = before[:-1] if before.endswith("s") and not before.endswith("ss") else before
    return f"{singular}_{matched}"


def _no_match(pattern: str, names: list[str], owner: str) -> str:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    hint = near or [name for name in names if "." not in name][:5]
    listed = ", ".join(hint) if hint else "none: it has no submodules"
    return f"layers: {pattern!r} matches no submodule of {owner}; nearest names: {listed}"
