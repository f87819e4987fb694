"""docs/extending.md, followed to the letter in a copy of the project."""

import json
import re
import shlex
import shutil

from tests.helpers.runs import ROOT, call

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_a_data_set_a_network_and_a_protocol_are_one_file_and_one_line_each(tmp_path):
    for name in ("main.py", "lib", "datasets", "models"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    registry = tmp_path / "lib" / "config" / "registry.py"
    text = registry.read_text(encoding="utf-8")
    files = re.findall(r"^`(\S+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^Its line, in `(\w+)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert (len(files), len(lines)) == (3, 3)
    for path, content in files:
        (tmp_path / path).write_text(content, encoding="utf-8")
    for name, line in lines:
        text = re.sub(rf"^({name} = \{{\n)", lambda found, line=line: found[1] + line, text, flags=re.MULTILINE)
    registry.write_text(text, encoding="utf-8")
    command = shlex.split(re.search(r"^python3 main.py (.*)$", PAGE, re.MULTILINE)[1])

    status, out, err = call(
        *command, "--gpus", "cpu", "--session", "s", program=[str(tmp_path / "main.py")], fresh=True, cwd=tmp_path
    )

    assert status == 0, err
    assert "nearest class mean: 100.00 %" in out
    last = json.loads((tmp_path / "sessions" / "s" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["centroid_top1"] == 1
