"""Whoever signs: the commands of docs/package.md as they stand there, with OpenSSL's own program."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from converter.cli import main
from tests import ROOT

TEXT = (ROOT / "docs" / "package.md").read_text(encoding="utf-8").split("## Signing")[1].split("## The card")[0]
WITH_KEYS, WITH_CERTIFICATES = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_the_commands_can_be_typed(certified: Path, tmp_path: Path) -> None:
    """One after the other, and each does what the text says."""
    shutil.copytree(certified, tmp_path / "to-publish")
    program = tmp_path / "bin" / "converter"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom converter.cli import converter_main; converter_main()\n")
    program.chmod(0o755)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": paths}
    said = []
    for script in (WITH_KEYS, WITH_CERTIFICATES):
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-c", script], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith("\npass\n")
        said.append(done.stdout)
    assert "signature: by the key in signer.pub, SHA-256 " in said[0]
    assert "signature: by me@example.org, as lab.crt certified" in said[1]


def test_the_job_has_an_identity_and_its_signature_is_asked_for(certified: Path) -> None:
    (job,) = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[0])["jobs"].values()
    assert job["permissions"]["id-token"] == "write"
    ((_, *words),) = [
        shlex.split(block.replace("\\\n", "")) for block in re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    ]
    done = CliRunner().invoke(main, [str(certified) if word == "org/glip-t" else word for word in words])
    assert (done.exit_code, "is not signed: it has no model.sig" in done.output) == (8, True), done.output


def test_help_has_commands_that_can_be_read() -> None:
    """Every option that its examples name is one of the command."""
    from converter.cli.sign import sign

    examples = [line.split() for line in (sign.epilog or "").splitlines() if line.startswith("  converter sign")]
    assert len(examples) == 3
    for _, _, *words in examples:
        assert {word for word in words if word.startswith("--")} <= {name for p in sign.params for name in p.opts}
