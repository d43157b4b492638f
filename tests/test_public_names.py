"""`from converter import GLIP, Detector, convert`: there when they are used, and nothing before."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import converter
from converter import GLIP, Detector, convert
from converter.errors import ConverterWarning, DestinationError
from tests.support.small_files import official, official_of


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys; before = {*sys.modules}; import converter; dir(converter); print({*sys.modules} - before)"
    assert {name.split(".")[0] for name in eval(python(code).stdout)} <= {"converter", *sys.stdlib_module_names}


def test_convert_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from converter import convert; print(convert.__name__)"
    assert python(code).stdout == "convert\n"


def test_to_inspect_needs_no_numpy(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "m.pth")
    code = "import sys; sys.modules['numpy'] = None; from converter.cli import main; "
    assert "next:  " in python(f"{code}main(['inspect', {str(tmp_path / 'm.pth')!r}])").stdout


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it() -> None:
    done = python("import sys; sys.modules['torch'] = None; from converter import GLIP")
    assert "GLIP needs torch, which is not installed: pip install" in done.stderr


def test_the_names_are_those_of_their_homes() -> None:
    from converter.glip import GLIP as of_family

    assert GLIP is of_family
    assert pickle.loads(pickle.dumps(Detector)) is Detector
    assert {"GLIP", "Detector", "convert"} <= {*dir(converter)}
    with pytest.raises(AttributeError, match="module 'converter' has no attribute 'Glip'"):
        _ = converter.Glip


@pytest.mark.usefixtures("small_mappings")
def test_convert_takes_paths_and_gives_what_was_written(tmp_path: Path) -> None:
    source = tmp_path / "official.pth"
    torch.save(official(), source)
    done = convert(source, str(tmp_path / "made.safetensors"), keep_residue=True)
    assert done.destination == tmp_path / "made.safetensors"
    assert done.ledger["table"]["name"] == "glip-official"
    with pytest.raises(DestinationError, match="exists"):
        convert(source, done.destination)
    convert(done.destination, tmp_path / "again.pth", to="glip-official")
    assert torch.load(tmp_path / "again.pth")["model"].keys() == official_of(source).keys()
    with pytest.warns(ConverterWarning, match="is for the way back to glip-official, not to mmdet-glip"):
        convert(done.destination, tmp_path / "mmdet.pth", to="mmdet-glip")
