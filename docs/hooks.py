"""Hook of mkdocs: pages that live at the root of the project and under ``projects/`` join the site.

They keep their links for readers of the repository; here links to other pages are turned to the site's, and links to
files that are no pages (configs, scripts) become plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = sorted(page.parent.name for page in ROOT.glob("projects/*/README.md"))
# Path in the repository -> path in the site.
OUTSIDE = {
    **{name: name for name in ("MODEL_ZOO.md", "CHANGELOG.md", "CONTRIBUTING.md")},
    **{
        f"projects/{page.parent.name}/README.md": f"projects/{page.parent.name}.md"
        for page in ROOT.glob("projects/*/README.md")
    },
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of ``docs/``, with the images that lie beside them."""
    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
        for image in (ROOT / source).parent.glob("images/*") if "/" in source else ():
            files.append(File.generated(config, f"projects/images/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page from places in the repository to places in the site."""
    site_path = page.file.src_uri
    origin = next((source for source, target in OUTSIDE.items() if target == site_path), f"docs/{site_path}")

    def turned(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match.group(0)
        place = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if place in OUTSIDE:
            site_target = OUTSIDE[place]
        elif place.startswith("docs/"):
            site_target = place.removeprefix("docs/")
        elif origin.startswith("projects/") and place.startswith(posixpath.dirname(origin) + "/images/"):
            site_target = f"projects/images/{posixpath.basename(place)}"
        elif place == "README.md":
            site_target = "index.md"
        else:
            return f"{text} (`{place}`)"
        return f"{image}[{text}]({posixpath.relpath(site_target, posixpath.dirname(site_path) or '.')}{anchor or ''})"

    return LINK.sub(turned, markdown)
