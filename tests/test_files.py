"""Every row of docs/files.md: such a file converts to the tensors of the plain one, or is refused as it says."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.planning.test_adapters import ALPHA, RANK, with_adapters
from tests.planning.test_wrappers import Holder, adapted, bare, moved
from tests.support.reading import contents
from tests.support.small_files import refusal, run, tensors_in

pytestmark = pytest.mark.usefixtures("small_mappings")
DOCUMENT = Path(__file__).parents[1] / "docs" / "files.md"
Make = Callable[[Path], Path]
Weights = Mapping[str, torch.Tensor]


def saved(item: Callable[[], Any], name: str = "file.pth", **options: Any) -> Make:
    def make(folder: Path) -> Path:
        torch.save(item(), folder / name, **options)
        return folder / name

    return make


def written(name: str, data: Callable[[], bytes]) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data())
        return folder / name

    return make


def before(*words: str) -> dict[str, torch.Tensor]:
    return {".".join([*words, name]): tensor for name, tensor in bare().items()}


def shards(folder: Path, *, kind: str = "bin", lost: bool = False, give: str = "index") -> Path:
    names = [f"{'pytorch_model' if kind == 'bin' else 'model'}-0000{i}-of-00002.{kind}" for i in (1, 2)]
    weights = list(bare().items())
    parts = [dict(weights[:100]), dict(weights[100:])]
    for name, part in zip(names, parts, strict=True):
        if not (lost and name == names[1]):
            torch.save(part, folder / name) if kind == "bin" else save_file(part, folder / name)
    index = folder / f"{names[0].partition('-')[0]}.{kind}.index.json"
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return {"index": index, "folder": folder, "shard": folder / names[0]}[give]


def mmdet() -> dict[str, Any]:
    weights = tensors_in("mmdet-glip")
    scales = {n: t.reshape(1) for n, t in weights.items() if n.endswith(".scale")}
    assert len(scales) == 5
    averaged = {f"module.{n}": t for n, t in {**weights, **scales}.items()}
    return {
        "meta": {"epoch": 1}, "state_dict": OrderedDict({**weights, **scales}),
        "ema_state_dict": OrderedDict({**averaged, "steps": torch.tensor(3)}),
        "message_hub": {"log_scalars": {}, "runtime_info": {"iter": 3}}, "optimizer": {"state": {}, "param_groups": []},
    }  # fmt: skip


def dcp(folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.save({"model": bare()}, checkpoint_id=folder / "dcp")
    return folder / "dcp"


def zero(folder: Path) -> Path:
    (folder / "latest").write_text("global_step1")
    (folder / "global_step1").mkdir()
    part = folder / "global_step1" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {}}, part)
    return part


def unpacked(folder: Path) -> Path:
    with zipfile.ZipFile(saved(bare)(folder)) as file:
        file.extractall(folder / "out")
    (inner,) = (folder / "out").iterdir()
    return inner


def packed(kind: str) -> bytes:
    buffer, inner = io.BytesIO(), io.BytesIO()
    torch.save(bare(), inner)
    if kind == "gzip":
        return gzip.compress(inner.getvalue(), 1)
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("weights/model.pth", inner.getvalue())
    else:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo("weights/model.pth")
            info.size = len(inner.getvalue())
            tar.addfile(info, io.BytesIO(inner.getvalue()))
    return buffer.getvalue()


def torchscript(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "script.pt")
    return folder / "script.pt"


def cut(folder: Path) -> Path:
    path = saved(bare)(folder)
    path.write_bytes(path.read_bytes()[: 3 * path.stat().st_size // 4])
    return path


def swin(folder: Path) -> Path:
    """A Swin of timm for pictures of another size: its masks are of 4 x 4 windows where 2 x 2 would do."""
    from converter.mapping.rebuild import shifted_window_mask

    weights = tensors_in("timm-swin")
    masks = {"layers.0.blocks.1.attn_mask": torch.from_numpy(shifted_window_mask(48, 3).copy())}
    head = {"head.fc.weight": torch.ones(5, 32), "head.fc.bias": torch.ones(5)}
    torch.save({**weights, **masks, **head}, folder / "swin.pth")
    return folder / "swin.pth"


def few_wrong() -> dict[str, torch.Tensor]:
    weights = bare()
    weights["rpn.head.bias_0"] = weights.pop("rpn.head.bias0")
    return weights


def half() -> dict[str, torch.Tensor]:
    return {n: t.half() if t.is_floating_point() and "anchors" not in n else t for n, t in bare().items()}


POOLER = {
    "language_backbone.body.model.pooler.dense.weight": torch.ones(6, 6),
    "language_backbone.body.model.pooler.dense.bias": torch.ones(6),
}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
PEFT = {"lora_alpha": ALPHA, "r": RANK}
# the beginning of a row's first cell -> files of that kind
ROWS: dict[str, list[Make]] = {
    "an official `.pth`": [saved(lambda: {"model": before("module")}),
                           saved(lambda: {"model": before("module")}, _use_new_zipfile_serialization=False)],
    "a checkpoint of the official trainer": [saved(lambda: {"model": before("module"), "optimizer": OPTIMIZER,
                                                            "scheduler": {"last_epoch": 3}, "iteration": 7})],
    "weights in a dict": [saved(lambda: {"ckpt": {"weights": bare(), "loss": torch.ones(())}, "acc": torch.ones(2)})],
    "two state dicts that both": [saved(lambda: {"model_ema": moved(), "model": bare()})],
    "two state dicts of which": [saved(lambda: {"red": bare(), "blue": moved()})],
    "wrappers in names": [saved(lambda: {"state_dict": before("model", "_orig_mod", "module")}),
                          saved(lambda: before("ema_model", "module")),
                          saved(lambda: {n.replace(".body.", ".body._orig_mod."): t for n, t in bare().items()}),
                          saved(lambda: {adapted(name): tensor for name, tensor in bare().items()})],
    "names with and without": [saved(lambda: {f"module.{n}" if "rpn" in n else n: t for n, t in bare().items()})],
    "student and teacher": [saved(lambda: before("student") | before("teacher"))],
    "a body of the student": [saved(lambda: {f"{'student' if 'rpn' in n else 'teacher'}.{n}": t
                                              for n, t in bare().items()})],
    "names behind": [saved(lambda: before("detector"))],
    "counters among": [saved(lambda: {**bare(), "num_updates": torch.tensor(3), "global_step": torch.tensor([4]),
                                      "rpn.head.num_batches_tracked": torch.tensor(5)})],
    "a model with PEFT's LoRA": [saved(lambda: {"model": with_adapters()[0], **PEFT})],
    "a model with LoRA that does not": [saved(lambda: {"model": with_adapters()[0]})],
    "a LoRA adapter alone": [saved(lambda: {n: t for n, t in with_adapters()[0].items() if ".lora_" in n})],
    "a pickled module": [saved(lambda: Holder(bare())), saved(lambda: {"ema": Holder(bare()), "epoch": 3}),
                         saved(lambda: Holder(bare()), _use_new_zipfile_serialization=False)],
    "DeepSpeed's": [saved(lambda: {"module": bare(), "ds_version": "0.15", "buffer_names": []},
                          "mp_rank_00_model_states.pt")],
    "shards of transformers": [lambda folder: shards(folder), lambda folder: shards(folder, give="folder"),
                               lambda folder: shards(folder, kind="safetensors")],
    "one shard": [lambda folder: shards(folder, give="shard"),
                  lambda folder: shards(folder, kind="safetensors", give="shard")],
    "an index whose": [lambda folder: shards(folder, lost=True)],
    "half precision": [saved(half)],
    "MMDetection's published": [saved(mmdet), saved(lambda: {"state_dict": mmdet()["state_dict"]}),
                                saved(lambda: mmdet()["state_dict"]),
                                saved(lambda: {"ema_state_dict": mmdet()["ema_state_dict"]})],
    "BERT's pooler": [saved(lambda: {**bare(), **POOLER})],
    "a Swin of timm": [swin],
    "MQ-Det": [saved(lambda: {**bare(), "language_backbone.body.model.encoder.qv_layer.0.ff_gate": torch.ones(1),
                              "language_backbone.body.model.encoder.qv_layer.0.attn.to_q.weight": torch.ones(6, 6)})],
    "a few names": [saved(few_wrong)],
    "a folder or part of torch": [dcp, lambda folder: dcp(folder) / "__0_0.distcp"],
    "partitions of DeepSpeed": [zero, lambda folder: zero(folder).parents[1],
                                saved(lambda: {"module": {n: torch.ones(0) for n in bare()}},
                                      "mp_rank_00_model_states.pt")],
    "parameters that FSDP": [saved(lambda: {"_fsdp_wrapped_module._flat_param": torch.ones(9)})],
    "numpy arrays": [saved(lambda: {"model": {n: t.numpy() for n, t in bare().items()}})],
    "an unpacked": [unpacked],
    "a Git LFS": [written("a.pth", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")],
    "a web page": [written("a.pth", lambda: b"<!DOCTYPE html><html><title>404</title></html>"),
                   written("a.pth", lambda: "\ufeff<?xml version='1.0'?><Error/>".encode())],
    "a download": [cut],
    "gzip, tar or zip": [written(f"a.{kind}", lambda kind=kind: packed(kind)) for kind in ("gzip", "tar", "zip")],  # type: ignore[misc]
    "TorchScript": [torchscript],
    "ONNX": [written("a.onnx", lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xa0\x01")],
    "Keras, TensorFlow": [written("a.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(99)),
                          written("a.ckpt.index", lambda: bytes(range(1, 99))),
                          written("flax_model.msgpack", lambda: b"\x81\xa6params\x81" + bytes(99))],
    "a tensor alone": [saved(lambda: torch.ones(3)), saved(lambda: (bare(), 3)), saved(lambda: [torch.ones(2)])],
    "the state of an optimizer": [saved(lambda: OPTIMIZER), saved(lambda: {"optimizer": OPTIMIZER, "epoch": 3})],
    "an empty file": [written("a.pth", lambda: b"")],
}  # fmt: skip
# rows of which more is said than the document quotes
SAID = {
    "a few names": [r"297 of the 298 tensors that \w+ needs are there, 2 problems",
                    r"no rule matches 'rpn\.head\.bias_0' .*Nearest: 'rpn\.head\.bias0'",
                    r"'rpn\.head\.bias0' \(1,\) is missing"],
    "gzip, tar or zip": [r"compressed with gzip: a zip archive, as torch\.save|with 'weights/model\.pth' in it"],
    "one shard": [r"\.(bin|safetensors)\.index\.json'"],
    "an index whose": [r"'pytorch_model-00002-of-00002\.bin'"],
    "a download": [r"has [\d.]+ kB of at least [\d.]+ kB"],
}  # fmt: skip
# rows whose files hold other numbers than the plain file does
BASIS: dict[str, Callable[[], Any]] = {
    "a model with PEFT's LoRA": lambda: with_adapters()[1],
    "half precision": half,
    "a Swin of timm": lambda: tensors_in("timm-swin"),
}
REACHED = {"a model with PEFT's LoRA": 1e-6}  # float32, added up in another order


def _first_part() -> str:
    return DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]


def rows() -> list[tuple[str, str]]:
    """The cells of the table."""
    lines = [line for line in _first_part().splitlines() if line.startswith("| ")]
    return [(cells[1].strip(), cells[2].strip()) for cells in (line.split("|") for line in lines[1:])]


def cases() -> list[Any]:
    found = []
    for what, happens in rows():
        (key,) = (key for key in ROWS if what.startswith(key))
        found += [pytest.param(key, make, happens, id=f"{key}, {i}") for i, make in enumerate(ROWS[key])]
    return found


def test_every_kind_is_a_row_and_every_row_a_kind() -> None:
    assert len(rows()) == len(ROWS) == len({key for key in ROWS for what, _ in rows() if what.startswith(key)})


@pytest.fixture
def plain(tmp_path: Path) -> Callable[[Any], dict[str, Any]]:
    """What state dicts without anything around them become."""

    def convert(weights: Any) -> dict[str, Any]:
        torch.save(weights, tmp_path / "plain.pth")
        run("convert", "--src", tmp_path / "plain.pth", "--dst", tmp_path / "plain.safetensors")
        return contents(tmp_path / "plain.safetensors")

    return convert


@pytest.mark.parametrize(("kind", "make", "happens"), cases())
def test_what_the_document_says_happens(
    kind: str, make: Make, happens: str, plain: Callable[[Any], dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "given").mkdir()
    path = make(tmp_path / "given")
    out = tmp_path / "out.safetensors"
    if not happens.startswith("refused"):
        assert happens.startswith("converts")
        run("convert", "--src", path, "--dst", out)
        found, wanted = contents(out), plain(BASIS.get(kind, bare)())
        if kind not in REACHED:
            assert found == wanted
            return
        assert found.keys() == wanted.keys()
        for name, (_, shape, data) in wanted.items():
            one, other = (torch.frombuffer(bytearray(d), dtype=torch.float32) for d in (found[name][2], data))
            torch.testing.assert_close(one, other, rtol=0, atol=REACHED[kind] * max(1.0, float(other.abs().max())))
            assert found[name][1] == shape
        return
    error = refusal("convert", "--src", path, "--dst", out, code=5 if _is_of_the_plan(happens) else 3)
    said = "\n".join([error["message"], *error["problems"]])
    for quoted in re.findall(r'"([^"]+)"', happens):
        assert quoted in said
    for pattern in SAID.get(kind, ()):
        assert re.search(pattern, said)
    assert "_rebuild" not in said
    assert not out.exists()


def _is_of_the_plan(happens: str) -> bool:
    words = ("same key", "different copies", "behind", "qv_layer", "does not fit")
    return any(word in happens for word in words)
