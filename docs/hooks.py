"""Pages of the site that are made from the code, and mathematics as MathML, so that no page asks anybody for a script.

MkDocs calls the functions by their names (`hooks:` in mkdocs.yml).
"""

import argparse
import fnmatch
import html
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from datadistill.cli.main import make_parser
from datadistill.experiments.recipes import recipes
from datadistill.experiments.recipes.measured import load_measured

ROOT = Path(__file__).parent.parent
BESIDE = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/*.py",
    "gallery/README.md",
    "gallery/*/README.md",
    "gallery/*/sheet.png",
)
"""Files of the repository that pages link to."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All files of the site: with the command line, the notebook, and what pages link to outside of docs/."""
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "command-line.md", content=command_line()))
    files.append(File.generated(config, "notebook.md", content=notebook(ROOT / "examples" / "digits.ipynb")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with its figures, and its links as the site has them: what lies beside docs/ lies in it.

    The quickstart stands for the README, and the notebook's page for the notebook.
    """
    source = page.file.src_uri
    markdown = re.sub(r"<!-- measured: (.*?) -->", _measured, markdown)
    markdown = re.sub(r"\]\((\.\./|)README\.md(#[\w-]+)?\)", r"](\1quickstart.md)", markdown)
    markdown = markdown.replace("](../examples/digits.ipynb)", "](notebook.md)")
    if source in ("CONTRIBUTING.md", "CHANGELOG.md"):
        return markdown.replace("](docs/", "](")
    if source == "gallery/README.md":
        return markdown.replace("](../docs/", "](../")
    return markdown if "/" in source else markdown.replace("](../docs/", "](").replace("](../", "](")


def _measured(marker: re.Match[str]) -> str:
    """The table of the recipes that a marker names, from what is recorded, with the published figures beside."""
    known, measured = recipes(), load_measured()
    names = [name for pattern in marker[1].split() for name in fnmatch.filter(known.names(), pattern)]
    lines = ["| `datadistill reproduce` | this | published | networks | distilling |", "|---|---|---|---|---|"]
    for recipe in (known.get(name) for name in names):
        entry = measured.get(recipe.name)
        if entry is None or entry.is_stale(recipe):
            figures = ["not measured in this form", recipe.published("after"), "", ""]
        else:
            std = "" if entry.std is None else f" ± {100 * entry.std:.1f}"
            value = f"{100 * entry.value:.1f}{std} %"
            figures = [f"**{value}**", recipe.published("after"), str(entry.nets), f"{entry.seconds:.0f} s"]
        lines.append(" | ".join(["", f"`{recipe.name}`", *figures, ""]).strip())
    return "\n".join(lines)


def on_page_content(page_html: str, **_: Any) -> str:
    """The HTML of a page with its formulas as MathML."""
    return re.sub(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', _mathml, page_html, flags=re.DOTALL)


def _mathml(formula: re.Match[str]) -> str:
    return convert(html.unescape(formula[3]).strip(), display="block" if formula[2] == "[" else "inline")


def command_line() -> str:
    """The page of the command line: every command with its flags, as the parser has them."""
    _, commands = make_parser()
    parts = ["# The command line\n\nMade from the program's own parser; `datadistill COMMAND --help` says the same.\n"]
    for name, parser in commands.items():
        parts += [f"## {name}\n", f"    {_usage(parser)}\n", _described(parser.description or "")]
        parts += ["\n".join(_group(parser, group)) for group in parser._action_groups if group._group_actions]
    return "\n".join(parts)


def _usage(parser: argparse.ArgumentParser) -> str:
    return parser.format_usage().removeprefix("usage: ").strip()


def _described(description: str) -> str:
    """A command's description: its paragraphs as text, its examples as code."""
    text, _, examples = description.partition("examples:\n")
    return _prose(text) + ("\n```text\n" + textwrap.dedent(examples).strip() + "\n```\n" if examples else "")


def _group(parser: argparse.ArgumentParser, group: Any) -> list[str]:
    lines = [] if group.title in ("options", "positional arguments") else [f"\n*{group.title}*\n"]
    for action in group._group_actions:
        if action.help is argparse.SUPPRESS or "--help" in action.option_strings:
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
        shown = [f"{flag} {metavar}".strip() if action.nargs != 0 else flag for flag in action.option_strings]
        names = ", ".join(f"`{text}`" for text in shown or [metavar or action.dest])
        lines.append(f"- {names}  \n  {_prose(parser._get_formatter()._expand_help(action))}")
    return [*lines, ""]


def _prose(text: str) -> str:
    """Text as Markdown that shows it as it is, but for what stands in backquotes."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([*_<>\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def notebook(path: Path) -> str:
    """A page of a notebook: its text, its code, and what the code printed and drew when it was run."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            parts.append(_output(output))
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    if "text" in output:
        return "```text\n" + "".join(output["text"]).rstrip() + "\n```"
    data = output["data"]
    if "image/png" in data:
        return f'<img alt="what the cell drew" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    return "```text\n" + "".join(data["text/plain"]) + "\n```"
