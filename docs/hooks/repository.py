"""Shows files of the repository as pages of the site, and what links out of docs/ as names of files.

On a page in docs/ a link such as [server/rounds.py](../server/rounds.py) works where the repository is browsed. The site has
no source files: there the link becomes the file's name. A link to a file that does not exist stops the build.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[2]
PAGES = {
    "benchmarks/RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files outside docs/ that are pages of the site, and the pages' names."""
PICTURES = "benchmarks/plots"
REMOTE = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?(?P<address>https?:[^\s\"'>]+)")
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)?(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's pages, and the pictures that the results show."""
    for source, page in PAGES.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_rewritten(text, (REPOSITORY / source).parent)))
    for picture in sorted((REPOSITORY / PICTURES).glob("*.png")):
        files.append(File.generated(config, f"plots/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ into pages of the site, or into names of files."""
    return markdown if page.file.generated_by else _rewritten(markdown, REPOSITORY / "docs")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch something from elsewhere."""
    if found := REMOTE.search(output):
        raise PluginError(f"{page.file.src_uri} fetches {found['address']}: the site is read without a network too")
    return output


def _rewritten(markdown: str, folder: Path) -> str:
    """A text of `folder` with its links as they are on the site; what is indented or fenced as code stays."""
    return "".join(
        line if line.startswith("    ") else LINK.sub(lambda found: _link(found, folder), line)
        for line in markdown.splitlines(keepends=True)
    )


def _link(found: re.Match[str], folder: Path) -> str:
    text, target, anchor = found["text"], found["target"], found["anchor"] or ""
    if not target or "://" in target or target.startswith("mailto:"):
        return found[0]
    path = (folder / target).resolve()
    if path.parent == REPOSITORY / "docs":
        return f"[{text}]({path.name}{anchor})"
    if not path.is_relative_to(REPOSITORY) or not path.exists():
        raise PluginError(f"a link to {target!r}, which does not exist")
    name = path.relative_to(REPOSITORY).as_posix()
    if name in PAGES:
        return f"[{text}]({PAGES[name]}{anchor})"
    if name.startswith("docs/"):
        return f"[{text}]({name.removeprefix('docs/')}{anchor})"
    if name.startswith(PICTURES):
        return f"[{text}](plots/{path.name})"
    return f"`{name}`" if text.strip("`") in (name, path.name) else f"{text} (`{name}`)"
