"""What docs/format-wal.md prints reads a stored file without pgrecall."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.wal_scene import Scene, build_segments

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_the_recipe_reads_a_segment(tmp_path: Path, compression: str) -> None:
    scene = Scene(tmp_path, segment_bytes=4 << 20)
    ((name, content),) = build_segments(1, segment_bytes=4 << 20).items()
    scene.settings.wal = scene.settings.wal.replace(compression=compression)
    scene.push_new(name, content)
    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCUMENTS.glob("format*.md"))]
    (recipe,) = (
        block
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "PGRWALE" in block
    )
    output = tmp_path / "raw"
    subprocess.run(
        [sys.executable, "-I", "-c", recipe, str(scene.object_path(name)), str(output)], check=True
    )
    assert output.read_bytes() == content
