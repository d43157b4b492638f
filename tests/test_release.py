"""What is released: the files of wheel and sdist, what they say of themselves, and one version in all documents."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

from converter import __version__
from scripts.release_environments import COMMANDS
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ABOUT = f"converter-{__version__}.dist-info"
Files = Mapping[str, bytes]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("RELEASE_DIST"):  # of scripts/release.sh: what will be uploaded
        return Path(given)
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Files:
    with zipfile.ZipFile(built / f"converter-{__version__}-py3-none-any.whl") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> Files:
    with tarfile.open(built / f"converter-{__version__}.tar.gz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        assert None not in files.values()  # folders and links
        return {name.removeprefix(f"converter-{__version__}/"): file.read() for name, file in files.items() if file}


@pytest.fixture(scope="module")
def metadata(wheel: Files) -> Message:
    return Parser().parsestr(wheel[f"{ABOUT}/METADATA"].decode())


def kept(*folders: str) -> set[str]:
    """The files of the repository below them, also those that are not committed yet."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_wheel_has_the_package_the_mappings_and_the_licence(wheel: Files) -> None:
    """All of it, and nothing else."""
    own = {f"{ABOUT}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    licences = {f"{ABOUT}/licenses/{name}" for name in ("LICENSE", "NOTICE")}
    tables = {f"converter/{name}" for name in kept("mappings")}
    assert wheel.keys() == kept("converter") | tables | licences | own
    for name in kept("converter", "mappings"):
        assert wheel[name if name.startswith("converter/") else f"converter/{name}"] == (ROOT / name).read_bytes()


def test_nobody_has_to_trust_the_list_of_the_repository(wheel: Files) -> None:
    """Said once more by name: what a user misses first, and what is no user's."""
    assert {
        "converter/py.typed",
        "converter/mappings/glip-official.json",
        "converter/mappings/schema.json",
        "converter/mappings/released.json",
        "converter/cli/schemas/convert.json",
        "converter/parity/certificate.schema.json",
        "converter/parity/gates.json",
        "converter/grounding/bert-base-uncased-vocab.txt",
        f"{ABOUT}/licenses/LICENSE",
    } <= wheel.keys()
    assert {PurePosixPath(name).parts[0] for name in wheel} == {"converter", ABOUT}
    for name in wheel:
        path = PurePosixPath(name)
        assert not {"tests", "scripts", "__pycache__"} & set(path.parts), name
        assert path.suffix not in {".pyc", ".pth", ".safetensors"}, name


def test_the_sdist_has_what_the_wheel_is_built_of_and_the_documents(sdist: Files) -> None:
    beside = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "NOTICE", "pyproject.toml", ".gitignore"}
    assert sdist.keys() == kept("converter", "mappings", "docs") | beside | {"PKG-INFO"}
    assert all(sdist[name] == (ROOT / name).read_bytes() for name in sdist.keys() - {"PKG-INFO"})


def test_it_says_what_it_needs(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("converter", __version__)
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert (metadata["License-Expression"], metadata.get_all("License-File")) == ("Apache-2.0", ["LICENSE", "NOTICE"])
    assert set(metadata.get_all("Provides-Extra", [])) == PROJECT["optional-dependencies"].keys()
    asked = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(asked) == sorted(PROJECT["dependencies"])
    assert all(">=" in line for line in metadata.get_all("Requires-Dist", [])), "every lowest version is stated"


def test_each_extra_is_tried() -> None:
    assert COMMANDS.keys() == {"", *PROJECT["optional-dependencies"]}


def test_where_no_environment_was_tried_none_has_passed() -> None:
    command = [sys.executable, "scripts/release_environments.py", "converter.whl", "--all"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1][:20]) == (1, "0 passed, 0 failed, ")


def test_it_brings_two_programs(wheel: Files) -> None:
    said = wheel[f"{ABOUT}/entry_points.txt"].decode()
    assert said.split() == [
        "[console_scripts]",
        *("convert", "=", "converter.cli:convert_main"),
        *("converter", "=", "converter.cli:converter_main"),
    ]


def test_there_is_one_version() -> None:
    """It stands in converter/__init__.py; whatever else names one names that."""
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert __version__ in headings[:2]
    assert headings[0] in {__version__, "Unreleased"}
    cited = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited == [__version__]
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        named = re.findall(r"\bconverter(?: |==|-)v?(\d+\.\d+\.\d+)", path.read_text(encoding="utf-8"))
        assert set(named) <= {__version__}, path
