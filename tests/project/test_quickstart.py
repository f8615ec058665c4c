"""docs/quickstart.md, docs/compare.md and README.md: their commands run as printed, on fewer pairs and a tiny model."""

import json
import shlex
from pathlib import Path

import pytest
from helpers.documents import blocks

from pcrm import cli

pytestmark = pytest.mark.usefixtures("trl_as_it_was")


def commands(page, name):
    """The lines of a page that call a command, split into words."""
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"pcrm {name} ")]


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(tiny)
    return tmp_path


@pytest.mark.slow
def test_quickstart(folder, tiny, capsys):
    (source,) = blocks("docs/quickstart.md", "python")
    assert source.count("pairs=1500") == 1
    exec(compile(source.replace("pairs=1500", "pairs=90"), "docs/quickstart.md", "exec"), {})
    assert json.loads(Path("pairs.jsonl").read_text().splitlines()[0]).keys() == {"prompt", "chosen", "rejected"}
    (check,) = commands("docs/quickstart.md", "check")
    assert cli.main(check) in (0, 1)  # generated pairs have contradictions, which are errors
    assert "pairs.jsonl: 90 rows" in capsys.readouterr().out
    (compare,) = commands("docs/quickstart.md", "compare")
    compare[compare.index("--model") + 1] = str(tiny)
    assert cli.main([*compare, "--cpu"]) == 0
    assert "pcrm reward " in capsys.readouterr().out
    assert Path("compare-out/report/report.html").is_file()
    (rows,) = blocks("docs/quickstart.md", "json")
    Path("three.jsonl").write_text(rows)
    assert cli.main(["check", "three.jsonl"]) == 0


@pytest.mark.slow
def test_compare(folder, rows, capsys):
    pairs = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    for name, part in (("pairs", pairs), ("train", pairs[:40]), ("test", pairs[40:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    found = commands("docs/compare.md", "compare")
    assert len(found) == 2 and commands("README.md", "compare") == found[:1]
    (check,) = commands("README.md", "check")
    assert cli.main(check) in (0, 1)  # these pairs may have contradictions
    for command in found:
        assert cli.main([*command, "--cpu"]) == 0, command
    printed = capsys.readouterr().out
    page = Path(__file__).parents[2] / "docs" / "compare.md"
    for row in ("Accuracy on test pairs", "Accuracy on training pairs", "Calibration error (ECE)", "Temperature"):
        assert row in printed or row == "Temperature"
        assert f"| {row} |" in page.read_text()
    for path in ("report/summary.json", "pcrm.toml", "plain", "constrained", "pairs", "scores"):
        assert Path("compare-out", path).exists() and Path("compare-test", path).exists()
