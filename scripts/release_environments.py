"""The wheel as strangers install it: each extra alone, with the newest and with the lowest versions that it allows.

    python scripts/release_environments.py dist/converter-*.whl              # core, draft and hub, this Python
    python scripts/release_environments.py dist/converter-*.whl --all        # everything: many gigabytes, an hour
    python scripts/release_environments.py dist/converter-*.whl --all --python 3.12 model detect

Each environment is made by uv, is asked for its help, and does what the extra is for, on the data that
scripts/release_data.py wrote, with no variable of whoever runs this. torch comes with CUDA, 5 GB, unless uv is told
otherwise: UV_TORCH_BACKEND=cpu. Pythons are those of PATH; one that is not there is skipped, and counted.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = {"newest": "highest", "lowest": "lowest-direct"}
DETECT = "street.png --prompt 'person. dog.' --threshold 0 --out found"
# extra -> what it is for, in the folder of release_data.py; '': converter without any
COMMANDS = {
    "": ("converter inspect official.pth", "converter convert official.pth glip-t.safetensors"),
    "draft": ("converter draft --src mine.safetensors --target theirs.safetensors --out tables",),
    "hub": ("converter publish to-publish org/NAME --unverified", "converter verify org/NAME"),
    "package": (
        "converter convert official.pth glip-t.safetensors",
        "converter package glip-t.safetensors packaged --model-name glip-t",
    ),
    "sign": (
        "cp -rL to-publish signed",
        "openssl ecparam -name prime256v1 -genkey -noout -out signer.pem",
        "openssl ec -in signer.pem -pubout -out signer.pub",
        "converter sign signed --key signer.pem --unverified",
        "converter verify signed --signature-key signer.pub",
    ),
    "model": (
        "converter capture small --dst capture.safetensors",
        "converter parity small --reference capture.safetensors",
    ),
    "detect": (f"converter detect small {DETECT}",),
    "evaluate": ("converter evaluate small --dataset mine.json --images . --out measured",),
    "transformers": (f"converter detect grounding-dino {DETECT}",),
    "onnx": (
        "converter capture small --dst capture.safetensors",
        "converter export small --dst small.onnx --size 75x101",  # of what `capture` takes where it is given none
        "converter parity small.onnx --reference capture.safetensors",
    ),
    "test": (f"python -m pytest -q {ROOT}/tests/mapping {ROOT}/tests/checkpoint",),
}
HUB = {name: value for name, value in os.environ.items() if name.startswith("HF_")}  # of tests/support/hub
QUICK = ("", "draft", "hub")  # without torch, and what CI has time for


class Failed(Exception):
    """What was run, and what it said."""


def run(command: Sequence[str | Path], **settings: object) -> str:
    """What it prints; Failed with all that it said if it fails."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **settings)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise Failed(f"$ {shlex.join(map(str, command))}\n{done.stdout.rstrip()}")
    return str(done.stdout)


def interpreter(version: str) -> Path | None:
    """The first Python of that version on PATH that runs: what a version manager has there may not."""
    for folder in os.get_exec_path():
        named = Path(folder) / f"python{version}"
        if named.exists() and subprocess.run([named, "-c", ""], capture_output=True, check=False).returncode == 0:
            return named
    return None


def install(wheel: Path, extra: str, python: Path, resolution: str, folder: Path) -> Path:
    """A new environment; the folder of its programs."""
    run(["uv", "venv", "--quiet", "--python", python, folder / "env"])
    into = ["uv", "pip", "install", "--quiet", "--python", folder / "env"]
    binary = ["--only-binary", ":all:"]
    if resolution == "newest":
        run([*into, *binary, f"converter{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}"])
    else:
        pins, wanted = folder / "pins.txt", ["--extra", extra] if extra else []
        lowest = ["uv", "pip", "compile", "--quiet", "--resolution", RESOLUTIONS[resolution], *binary, "-o", pins]
        run([*lowest, "--python", folder / "env", *wanted, ROOT / "pyproject.toml"])
        run([*into, *binary, "--no-deps", "--requirement", pins, wheel])
    run(["uv", "pip", "check", "--quiet", "--python", folder / "env"])
    return folder / "env" / "bin"


def versions(folder: Path) -> str:
    """What converter asks for itself, as it was installed."""
    (about,) = (folder / "env").glob("lib/python*/site-packages/converter-*.dist-info/METADATA")
    asked = set(re.findall(r"^Requires-Dist: ([\w-]+)", about.read_text(encoding="utf-8"), re.MULTILINE))
    listed = run(["uv", "pip", "freeze", "--quiet", "--python", folder / "env"]).splitlines()
    return ", ".join(line.replace("==", " ") for line in listed if line.split("==")[0] in asked)


def use(programs: Path, extra: str, data: Path, folder: Path, name: str) -> None:
    """Import, --help of everything, and what the extra is for."""
    work, home = folder / "work", folder / "home"
    work.mkdir()
    home.mkdir()
    for path in data.iterdir():
        (work / path.name).symlink_to(path)
    clean = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home), **(HUB if extra == "hub" else {})}
    where = "import converter, sys; print(converter.__file__.startswith(sys.prefix))"
    if run([programs / "python", "-W", "error", "-c", where], cwd=work, env=clean).strip() != "True":
        raise Failed("converter is not that of the wheel")
    listed = run([programs / "converter", "--help"], cwd=work, env=clean)
    if not (subcommands := re.findall(r"^  ([a-z]+) +[A-Z]", listed, re.MULTILINE)):
        raise Failed(f"no commands in what --help prints:\n{listed}")
    for subcommand in subcommands:
        run([programs / "converter", subcommand, "--help"], cwd=work, env=clean)
    for command in COMMANDS[extra]:
        run(["/usr/bin/env", *shlex.split(command.replace("NAME", name))], cwd=work, env=clean)
    shutil.rmtree(work)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("wheel", type=lambda name: Path(name).resolve())
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="default: core, draft and hub; with --all, all")
    parser.add_argument("--all", action="store_true", help="every extra, on every Python")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="default: the one that runs this")
    parser.add_argument("--data", type=Path, default=ROOT / ".work" / "release", help="of scripts/release_data.py")
    given = parser.parse_intermixed_args()
    extras = ["" if name == "core" else name for name in given.extras]
    extras = extras or list(COMMANDS if given.all else QUICK)
    pythons = given.python or (PYTHONS if given.all else ["{}.{}".format(*sys.version_info)])
    counted: Counter[str] = Counter()
    for version in pythons:
        python = interpreter(version)
        if python is None:
            counted["skipped"] += len(extras) * len(RESOLUTIONS)
            print(f"{version}  no python{version} of PATH runs, skipped", flush=True)
            continue
        for extra in extras:
            for resolution in RESOLUTIONS:
                counted[tried(given.wheel, extra, python, version, resolution, given.data)] += 1
    print(f"{counted['passed']} passed, {counted['failed']} failed, {counted['skipped']} skipped")
    return 0 if counted["passed"] and not counted["failed"] else 1


def tried(wheel: Path, extra: str, python: Path, version: str, resolution: str, data: Path) -> str:
    """One environment, in one line; passed or failed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="environment", dir=data.parent) as name:
        try:
            programs = install(wheel, extra, python, resolution, Path(name))
            said, result = versions(Path(name)), "passed"
            use(programs, extra, data, Path(name), f"{extra}-{version}-{resolution}")
        except Failed as failed:
            said, result = str(failed), "failed"
    print(
        f"{version}  {extra or 'core':<13}{resolution}  {result}  {time.monotonic() - start:4.0f} s  {said}", flush=True
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
