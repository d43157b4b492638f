"""scripts/capture_official.py against a stand-in for the official package: what it writes passes, what is no
reference is refused."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from converter.cli.tables import source_taps
from converter.glip.family import ANCHORS
from converter.mapping.load import load_table
from converter.parity.capture import load_capture
from converter.parity.probes import probe
from converter.parity.run import parity
from tests import ROOT
from tests.support.small_glip import small_config, small_glip, subject

SCRIPT = ROOT / "scripts" / "capture_official.py"
STANDIN = ROOT / "tests" / "support" / "official_standin"
SIZES = {"a.png": (64, 93), "b.png": (57, 93)}
CAPTIONS = ("person. bicycle. hair drier. traffic light. ", "a wooden boat. umbrella. cell phone. ")


class Workplace:
    """A folder with taps, a checkpoint, a configuration and two small images, and the script to run there."""

    def __init__(self, folder: Path, fusion: bool) -> None:
        self.folder = folder
        self.fusion = fusion
        self.weights = dict(official_weights(fusion))
        self.destination = folder / "official.safetensors"
        table = load_table("glip-official")
        taps = source_taps(table, "small", asdict(small_config(fusion=fusion)))
        self.names: list[str] = taps["tensors"]
        (folder / "taps.json").write_text(json.dumps(taps))
        (folder / "last_checkpoint").write_text("other.pth")  # the official loader follows it unless forced
        for name, (height, width) in SIZES.items():
            noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(height))
            Image.fromarray(noise.byte().numpy()).save(folder / name)

    def run(
        self,
        *options: str,
        faults: dict[str, bool] | None = None,
        weights: dict[str, Any] | None = None,
        umask: int = 0o022,
        default_inputs: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        content = {"MODEL": {"DYHEAD": {"FUSE_CONFIG": {"EARLY_FUSE_ON": self.fusion}}}, "FAULTS": faults or {}}
        (self.folder / "config.yaml").write_text(json.dumps(content))
        torch.save({"model": self.weights if weights is None else weights}, self.folder / "official.pth")
        given = ["--config", "config.yaml", "--weights", "official.pth", "--taps", "taps.json", "--device", "cpu"]
        if not default_inputs:
            given += ["--image", *SIZES, "--min-size", "64", "--max-size", "93"]
            given += [] if "--caption" in options else ["--caption", *CAPTIONS]
        return subprocess.run(
            [sys.executable, SCRIPT, *given, "--dst", self.destination.name, *options],
            cwd=self.folder,
            # one thread: several wait for each other where other tests run
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (STANDIN, ROOT))), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            umask=umask,
        )

    def facts(self) -> dict[str, Any]:
        with safe_open(self.destination, "pt") as file:
            return json.loads(file.metadata()["capture"])


@cache
def script() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("capture_official", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(module)
    return module


@cache
def official_weights(fusion: bool) -> dict[str, Any]:
    """The weights of the small model under the stand-in's names, as a distributed run saves them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STANDIN)
        from maskrcnn_benchmark.config import cfg
        from maskrcnn_benchmark.modeling.detector import build_detection_model
    model = build_detection_model(cfg.clone())
    model.take(small_glip(torch.float32, fusion=fusion))
    return {f"module.{key}": value.clone() for key, value in model.state_dict().items()}


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path, fusion=True)


@pytest.mark.parametrize("fusion", [True, False])
def test_what_it_writes_passes_parity(fusion: bool, tmp_path: Path) -> None:
    workplace = Workplace(tmp_path, fusion)
    workplace.destination.write_bytes(b"of before")
    done = workplace.run("--force", "--full")
    assert done.returncode == 0, done.stderr
    with load_capture(workplace.destination) as capture:
        report = parity(subject(small_glip(fusion=fusion)), capture)
        assert report.problems == []
        assert report.passed
        assert set(report.modes) == {"propagated", "injected"}
        assert sum(d.expected for d in report.detections) > 40
        assert not capture.compact
        assert {f"{ANCHORS}{level}" for level in range(5)} < set(capture.activations)
        own = [activation.errors["float32"] for name, activation in capture.activations.items() if ANCHORS not in name]
        assert all(0 < error < 1e-4 for error in own)
        assert capture.dtype == "float64"
        read = workplace.weights
        assert capture.facts["state_dict"] == script().state_dict_entry(read, script().unwrapped(read), workplace.names)
        assert capture.facts["image_sizes_hw"] == [[64, 93], [57, 93]]
        assert capture.facts["positive_map_label_to_token"] == {"1": [1], "2": [3], "3": [5, 6], "4": [8, 9]}
        assert capture.inputs["images"].shape == (2, 3, 64, 96)
        # the same capture tells another model apart, and where it is another
        other = small_glip(fusion=fusion)
        with torch.no_grad():
            other.head.text_bias += 1e-6
        injected = parity(subject(other), capture, modes=["injected"]).modes["injected"]
        assert {r.name.rpartition(".")[0] for r in injected if not r.passed} == {"rpn.head.dot_product_logits"}


def test_by_default_it_is_small_and_passes_parity_too(workplace: Workplace) -> None:
    done = workplace.run("--set", "MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN", "256", default_inputs=True)
    assert done.returncode == 0, done.stderr
    assert workplace.destination.stat().st_size < 6_000_000
    with load_capture(workplace.destination) as capture:
        assert all(activation.compact for activation in capture.activations.values())
        report = parity(subject(small_glip()), capture, modes=["propagated"])
        assert (report.passed, report.problems) == (True, [])
        # what a default capture has to offer: maps of several cells on every level, and long captions
        rows, columns = capture.activations["backbone.4"].shape[-2:]
        assert min(rows, columns) >= 3
        lengths = capture.inputs["attention_mask"].sum(dim=1).tolist()
        assert lengths[0] >= 60  # of 64 that are computed
        assert min(lengths) >= 40
        assert len(set(lengths)) == len(lengths) == 5  # masks of several lengths
        assert max(map(len, capture.facts["positive_map_label_to_token"].values())) == 3


@pytest.mark.parametrize("form", [[], ["--full"]])
def test_padding_that_is_not_compared_is_not_captured(form: list[str], workplace: Workplace) -> None:
    """Here the official float32 run is far off, but only in padding that the in-house model does not compute."""
    caption = "dog. " * 5  # 12 tokens, padded to 64; the model computes 32
    options = ["--caption", caption, "--set", "MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN", "64"]
    done = workplace.run(*options, *form, faults={"ROUGH_PADDING": True})
    assert done.returncode == 0, done.stderr
    with load_capture(workplace.destination) as capture:
        assert capture.inputs["input_ids"].shape == capture.inputs["attention_mask"].shape == (2, 32)
        assert capture.activations["language_backbone.hidden"].shape == (2, 32, 24)
        assert capture.activations["rpn.head.dyhead_tower.3.lang"].shape == (2, 32, 24)
        assert capture.activations["rpn.head.dot_product_logits.4"].shape == (2, 1, 32)
        assert capture.activations["backbone.0"].shape == (2, 32, 8, 12)  # as many channels, and not cut
        assert all(activation.errors["float32"] < 1e-4 for activation in capture.activations.values())
        assert parity(subject(small_glip()), capture).passed


@pytest.mark.parametrize("name", ["backbone.0", "rpn.head.dyhead_tower.3.lang"])
@pytest.mark.parametrize("shape", [(3, 5), (320,), (321,), (2, 41, 97)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_probes_are_those_of_the_library(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert torch.equal(script().probe(name, values), probe(name, values))


def test_synthetic_images_show_what_images_show() -> None:
    """Dark and bright, smooth and rough places, edges; and each image something else."""
    images = [script().synthetic_image(index, *settings).double() for index, settings in enumerate(script().SYNTHETIC)]
    steps = [(image[:, 1:] - image[:, :-1]).abs().amax(dim=-1) for image in images]
    for image, step in zip(images, steps, strict=True):
        assert image.amin() < 30
        assert image.amax() > 225
        assert 0.02 < (step > 60).double().mean() < 0.6
        assert (step < 3).double().mean() > 0.2
    means = torch.stack([image.mean(dim=(0, 1)) for image in images])
    assert torch.pdist(means).amin() > 10


def test_parameters_that_the_checkpoint_does_not_fill_are_refused(workplace: Workplace) -> None:
    del workplace.weights["module.backbone.body.layers.2.blocks.1.norm2.weight"]
    workplace.weights["module.rpn.head.bias0"] = torch.zeros(2)
    done = workplace.run()
    assert done.returncode == 1
    assert (
        f"2 of {len(workplace.weights) + 1} parameters did not come from the checkpoint: "
        "backbone.body.layers.2.blocks.1.norm2.weight, rpn.head.bias0"
    ) in done.stderr
    assert "went nowhere: module.rpn.head.bias0" in done.stderr
    assert not workplace.destination.exists()


def test_what_may_be_missing_keeps_its_value_and_what_is_left_over_is_told(workplace: Workplace) -> None:
    for part in ("weight", "bias"):
        del workplace.weights[f"module.rpn.head.cls_logits.{part}"]
    workplace.weights["module.rpn.head.mlm_head.bias"] = torch.zeros(3)
    workplace.weights["module.norm2.weight"] = workplace.weights.pop(
        "module.backbone.body.layers.0.blocks.0.norm2.weight"
    )
    done = workplace.run("--allow-unloaded", "rpn.head.cls_logits")
    assert done.returncode == 0, done.stderr
    # the last one shows what suffix matching can do: a key of a wrong name was taken, and is named
    assert workplace.facts()["audit"] == {
        "unloaded": ["rpn.head.cls_logits.weight", "rpn.head.cls_logits.bias"],
        "unused": ["module.rpn.head.mlm_head.bias"],
        "renamed": [["backbone.body.layers.0.blocks.0.norm2.weight", "module.norm2.weight"]],
    }


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("NOTICES_HOOKS", "hooks change what the model computes: others are rpn.head.dot_product_logits.0"),
        ("RANDOM", "two runs without any hook differ"),
    ],
)
def test_a_model_that_cannot_be_watched_is_refused(fault: str, message: str, workplace: Workplace) -> None:
    done = workplace.run(faults={fault: True})
    assert done.returncode == 1
    assert message in done.stderr
    assert not workplace.destination.exists()


def test_without_a_suppression_in_float64_only_that_is_rounded(workplace: Workplace) -> None:
    done = workplace.run(faults={"NO_FLOAT64_NMS": True})
    assert done.returncode == 0, done.stderr
    assert "tensor(" not in done.stdout + done.stderr  # the official code prints some
    with load_capture(workplace.destination) as capture:
        assert capture.facts["dtype"].startswith("float64 (post-processing in float32: in float64, RuntimeError")
        assert parity(subject(small_glip()), capture).passed


def test_without_float64_the_capture_is_float32_and_says_so(workplace: Workplace) -> None:
    done = workplace.run(faults={"NO_FLOAT64": True})
    assert done.returncode == 0, done.stderr
    assert "note: this capture is float32 (in float64, the model does not run on cpu: RuntimeError" in done.stderr
    with load_capture(workplace.destination) as capture:
        assert capture.dtype == "float32"
        assert capture.facts["errors"] == {}


def test_captions_and_labels_can_be_given(workplace: Workplace) -> None:
    caption = "red car. blue boat at sea. "
    done = workplace.run("--caption", caption, "--positive-map", '{"7": [1, 2]}', "--name", "cars", umask=0o027)
    assert done.returncode == 0, done.stderr
    assert workplace.destination.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in workplace.folder.iterdir()) == [
        "a.png", "b.png", "config.yaml", "last_checkpoint", "official.pth", "official.safetensors", "taps.json"
    ]  # fmt: skip
    facts = workplace.facts()
    assert facts["name"] == "cars"
    assert facts["captions"] == [caption] * 2
    assert facts["positive_map_label_to_token"] == {"7": [1, 2]}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--taps", "none.json"], 3, "--taps none.json: No such file"),
        (["--taps", "config.yaml"], 3, "not what `converter tables --taps TABLE --variant MODEL` prints"),
        (["--weights", "none.pth"], 3, "--weights none.pth: no such file"),
        (["--set", "MODEL.NONSENSE", "1"], 3, "Non-existent key: MODEL.NONSENSE"),
        (["--dst", "none/x.safetensors"], 6, "no such folder"),
        (["--dst", "x.pt"], 2, "let --dst end in .safetensors"),
        (["--caption", "a.", "--caption", "b.", "--caption", "c."], 2, "3 captions for 5 images"),
        (["--image", "none.jpg"], 2, "needs a --caption"),
        (["--image", "none.jpg", "two.jpg", "--caption", "a.", "b.", "c."], 2, "3 captions for 2 images"),
    ],
)
def test_what_cannot_be_used_is_named(options: list[str], code: int, message: str, workplace: Workplace) -> None:
    done = workplace.run(*options, default_inputs=True)
    assert done.returncode == code
    assert message in done.stderr


def test_taps_of_another_variant_are_named(workplace: Workplace) -> None:
    taps = source_taps(load_table("glip-official"), "other", asdict(small_config(head_blocks=3)))
    (workplace.folder / "taps.json").write_text(json.dumps(taps))
    done = workplace.run()
    assert done.returncode == 3
    assert "printed meanwhile, at the end:\ntensor(" in done.stderr  # when it fails, what was printed is of use
    assert "the model has no module rpn.head.dyhead_tower.6, rpn.head.dyhead_tower.7" in done.stderr


def test_a_step_into_a_tensor_is_refused(workplace: Workplace) -> None:
    content = json.loads((workplace.folder / "taps.json").read_text())
    content["taps"][0]["output"] = [0]  # would be the first image alone
    (workplace.folder / "taps.json").write_text(json.dumps(content))
    done = workplace.run()
    assert done.returncode == 3
    assert "tap backbone.body.patch_embed: what backbone.body.patch_embed returns leads nowhere by 0" in done.stderr


def test_nothing_is_replaced_without_being_told(workplace: Workplace) -> None:
    workplace.destination.write_bytes(b"mine")
    done = workplace.run()
    assert done.returncode == 6
    assert "exists; --force replaces it" in done.stderr
    assert workplace.destination.read_bytes() == b"mine"


def test_it_runs_on_python_3_8_with_torch_numpy_and_safetensors_alone() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    # annotations of newer Pythons are text here, never evaluated
    assert [a.name for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__" for a in n.names]
    everywhere = imported(tree)
    assert everywhere <= {"torch", "numpy", "safetensors", "maskrcnn_benchmark", "PIL", "cv2", *sys.stdlib_module_names}
    at_start = {name for node in tree.body for name in imported(node) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert at_start <= set(sys.stdlib_module_names)
    assert not {"removeprefix", "removesuffix", "file_digest", "pairwise", "strict"} & {
        *(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)),
        *(node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)),
    }


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names


def test_help_needs_nothing_installed() -> None:
    done = subprocess.run([sys.executable, "-S", SCRIPT, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "examples:" in done.stdout
