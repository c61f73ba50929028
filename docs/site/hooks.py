"""What the site has beside docs/: the README, the change log, and a reference page for each public door.

The pages of docs/ are written for the repository. Links that lead out of docs/ are turned to where the site has what
they mean, or to plain text where it has nothing.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from reference import DOORS, exported

ROOT = Path(__file__).resolve().parents[2]
_ELSEWHERE = {"../README.md": "readme.md", "../CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\[([^\]]*)\]\(((?!https?:|#)[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand elsewhere in the repository, and the reference."""
    readme = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text()).replace("](CHANGELOG.md", "](changelog.md")
    files.append(File.generated(config, "readme.md", content=readme))
    files.append(File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text()))
    for door in DOORS:
        content = f"# `{door}`\n\n::: {door}\n    options:\n      members: false\n      show_root_heading: false\n\n"
        content += "\n".join(f"::: {door}.{name}" for name in exported(door) if f"{door}.{name}" not in DOORS)
        files.append(File.generated(config, f"api/{door}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to where the site has what they mean, and names of the reference to their entries."""
    if page.file.src_uri == "api.md":
        for door in DOORS:
            before, head, after = markdown.partition(f"\n## `{door}`\n")
            section, rest_head, rest = after.partition("\n## ")
            section = re.sub(r"(?m)^\| `(\w+)` \|", rf"| [`\1`][{door}.\1] |", section)
            markdown = f"{before}\n## [`{door}`](api/{door}.md)\n{section}{rest_head}{rest}" if head else markdown
        return markdown

    def led(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, _, anchor = target.partition("#")
        if path in _ELSEWHERE:
            return f"[{text}]({_ELSEWHERE[path]}{f'#{anchor}' if anchor else ''})"
        there = (Path(page.file.src_uri).parent / path).as_posix()
        return match[0] if files.get_file_from_path(there) else text

    outside_fences = re.split(r"(?ms)(^```.*?^```\s*$)", markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(led, part) for part in outside_fences)
