"""`make docs`: writes the files that follow from the code. A test says when one is behind."""

import re
from pathlib import Path

from daemon import dashboard, metrics

ROOT = Path(__file__).parent.parent
_TABLE = re.compile(r"(?<=<!-- made by `make docs` -->\n).*?(?=<!-- end -->)", re.DOTALL)


def metrics_table() -> str:
    """TABLE of daemon/metrics.py in Markdown."""
    rows = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{m.name}` | {m.kind} | {', '.join(m.all_labels)} | {m.text} |" for m in metrics.TABLE
    ]
    return "\n".join(rows) + "\n"


def files(root: Path = ROOT) -> dict[Path, str]:
    """What each generated file should hold."""
    page = root / "docs" / "metrics.md"
    return {
        page: _TABLE.sub(lambda _: metrics_table(), page.read_text()),
        root / "deploy" / "grafana" / "afresh.json": dashboard.text(),
    }


def main() -> None:
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
