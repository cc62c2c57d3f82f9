"""Docstrings as they stand in the code, made ready for Markdown: roles become links, literal blocks become code.

``:class:`~package.Name``` in a docstring names another object. A name that does not exist is a warning, which
``mkdocs build --strict`` refuses; a link to an object that no reference page shows stays its name.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterator

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):`(~?)([^`]+)`")
LITERAL = re.compile(r"^(?P<lead>.*\S)::\n\n(?P<block>(?:[ ]{4}.*\n|\n)+)", re.MULTILINE)
BORDER = re.compile(r"=+(?: +=+)+")
PAGE = re.compile(r"\bdocs/(\w+(?:/\w+)?)\.md\b")


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package when it has been read."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: object) -> None:
        """Go through all objects of the package."""
        for thing in _objects(pkg):
            if thing.docstring is None and isinstance(thing, griffe.Attribute) and (words := _help(thing)):
                thing.docstring = griffe.Docstring(words, parent=thing)
                thing.value = _default(thing)
            if thing.docstring is not None:
                text = LITERAL.sub(_code_block, thing.docstring.value + "\n").rstrip("\n")
                text = _tables(text + "\n\n").rstrip("\n")
                text = PAGE.sub(lambda found: _page(found[1]), text)
                thing.docstring.value = ROLE.sub(lambda found, thing=thing: _link(found, thing, pkg), text)


def _objects(thing: griffe.Object) -> Iterator[griffe.Object]:
    yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _help(field: griffe.Attribute) -> str:
    """What a dataclass field says of itself in ``field(metadata={"help": ...})``; empty where nothing."""
    value = str(field.value)
    if "'help':" not in value.replace('"', "'"):
        return ""
    for node in ast.walk(ast.parse(value, mode="eval")):
        if isinstance(node, ast.Dict):
            for key, said in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    parts = said.values if isinstance(said, ast.JoinedStr) else [said]
                    return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
    return ""


def _default(field: griffe.Attribute) -> str | griffe.Expr | None:
    """The default of a dataclass field, in place of the call that declares it."""
    if isinstance(field.value, griffe.ExprCall):
        for argument in field.value.arguments:
            if isinstance(argument, griffe.ExprKeyword) and argument.name == "default":
                return argument.value
    return field.value


def _code_block(found: re.Match[str]) -> str:
    code = textwrap.dedent(found["block"]).strip("\n")
    try:
        compile(code, "docstring", "exec")
        language = "python"
    except SyntaxError:
        language = "text"
    return f"{found['lead']}:\n\n```{language}\n{code}\n```\n\n"


def _tables(text: str) -> str:
    """Simple tables of reStructuredText as Markdown's; a row whose first cell is empty goes on with the one before."""
    lines: list[str] = []
    rows: list[list[str]] = []
    borders = 0
    for line in text.splitlines():
        if BORDER.fullmatch(line.rstrip()):
            starts = [found.start() for found in re.finditer(r"=+", line)]
            borders += 1
            rows += [["---"] * len(starts)] if borders == 2 else []
            continue
        if borders in (1, 2) and line.strip():
            cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
            if cells[0] or not rows:
                rows.append(cells)
            else:
                rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], cells, strict=True)]
            continue
        if borders:
            if rows[-1][0] == "---":
                rows = [[""] * len(rows[0]), rows[-1], *rows[:-1]]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            rows, borders = [], 0
        lines.append(line)
    return "\n".join(lines)


def _page(name: str) -> str:
    """A link to a page of the documentation; the reference is one folder down."""
    return f"[docs/{name}.md](../{name}.md)"


def _link(found: re.Match[str], thing: griffe.Object, pkg: griffe.Module) -> str:
    is_short, name = bool(found[1]), found[2]
    shown = name.rpartition(".")[2] if is_short else name
    target = _resolve(name, thing, pkg)
    if target is None and hasattr(builtins, name):
        return f"`{shown}`"
    if target is None:
        griffe.logger.warning("%s: %s names nothing", thing.path, found[0])
        return f"`{shown}`"
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


def _resolve(name: str, thing: griffe.Object, pkg: griffe.Module) -> str | None:
    """The canonical path of a name as an object sees it, errors everywhere; None if there is none."""
    if name == pkg.name:
        return name
    if name.startswith(f"{pkg.name}."):
        return _member(pkg, name.removeprefix(f"{pkg.name}."))
    scope: griffe.Object | griffe.Alias | None = thing
    while scope is not None:
        if (found := _member(scope, name)) is not None:
            return found
        scope = scope.parent
    return _member(pkg, f"errors.{name}")


def _member(scope: griffe.Object, name: str) -> str | None:
    here: griffe.Object | griffe.Alias = scope
    for part in name.split("."):
        try:
            here = here.all_members[part] if here.is_class else here.members[part]
            here = here.final_target if here.is_alias else here
        except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
            return None
    return here.canonical_path
