"""Our distribution beside the other one, `shaped`, which has our import name: what each order of installation gives."""

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
THEIRS = {  # as theirs is laid out
    "shaped/__init__.py": "from shaped.client import Client\n",
    "shaped/client.py": "class Client: ...\n",
    "shaped/cli/__init__.py": "",
    "shaped/cli/shaped_cli.py": "def main():\n    print('the other command')\n",
}


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str], scripts: Mapping[str, str]) -> Path:
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    entries = "".join(f"{script} = {target}\n" for script, target in scripts.items())
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{entries}",
    }
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD")))
    return path


def ours(folder: Path) -> Path:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = {}
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        for file in (ROOT / package).rglob("*.py"):
            files[f"{Path(package).name}/{file.relative_to(ROOT / package)}"] = file.read_text()
    return wheel(folder, "shaped-trainer", "0.1.0", files, project["project"]["scripts"])


@pytest.mark.slow
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_command_works_or_says_what_to_do_whichever_was_installed_first(first: str, tmp_path: Path) -> None:
    wheels = [ours(tmp_path), wheel(tmp_path, "shaped", "2.0.82", THEIRS, {"shaped": "shaped.cli.shaped_cli:main"})]
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    site = next(place.glob("lib/python*/site-packages"))
    (site / "torch.pth").write_text(str(Path(torch.__file__).parent.parent))  # and what else it stands beside
    for file in wheels if first == "ours" else reversed(wheels):
        install = [sys.executable, "-m", "pip", "--python", str(place / "bin/python"), "install", "--no-index"]
        quietly = ["--no-deps", "--quiet", "--no-compile", "--disable-pip-version-check"]
        subprocess.run([*install, *quietly, str(file)], check=True)

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(place / "bin" / script), *arguments]
        return subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, cwd=tmp_path)

    doctor = run("shaped-trainer", "doctor")

    assert (run("shaped").stdout == "the other command\n") == (first == "ours")
    if first == "ours":
        assert doctor.returncode == 1
        assert doctor.stderr == (
            f"shaped-trainer: `shaped` 2.0.82, another distribution, has replaced {site / 'shaped/__init__.py'}: "
            "pip uninstall shaped, then pip install --force-reinstall --no-deps shaped-trainer\n"
        )
    else:
        assert (doctor.returncode, doctor.stderr) == (0, "")
        assert "`shaped` 2.0.82 is installed too, and writes into our folder" in doctor.stdout
