"""How long a forward takes in onnxruntime, and the model's own in PyTorch, on the CPU, in one run and in turns.

converter export glip-t.safetensors glip-t.onnx
python scripts/benchmark_onnx.py glip-t.safetensors glip-t.onnx --size 800x1344 --tokens 64
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import onnxruntime
import torch

from converter.glip import GLIP


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--size", default="800x1344", help="height x width of the picture, multiples of 32")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    height, width = map(int, given.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, height, width, generator=generator)
    ids = torch.randint(1, 1000, (1, given.tokens), generator=generator)
    mask = torch.ones_like(ids)
    inputs = {"images": images.numpy(), "input_ids": ids.numpy(), "attention_mask": mask.numpy()}

    begin = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(given.graph, options, providers=["CPUExecutionProvider"])
    print(f"onnxruntime {onnxruntime.__version__} opens the file in {time.perf_counter() - begin:.1f} s")
    model = GLIP.from_pretrained(given.weights)
    names = [f"{part}.{level}" for part in ("token_logits", "box_deltas", "centerness") for level in range(5)]

    def eager() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [level for part in model(images, ids, mask) for level in part]

    def graph() -> list[torch.Tensor]:
        return [torch.from_numpy(value) for value in session.run(names, inputs)]

    seconds: dict[str, list[float]] = {"eager": [], "graph": []}
    outputs = {}
    for turn in range(given.runs + 1):  # the first one is not counted
        for name, run in (("eager", eager), ("graph", graph)):
            begin = time.perf_counter()
            outputs[name] = run()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    pairs = zip(outputs["eager"], outputs["graph"], strict=True)
    worst = max(float((a - b).norm() / a.norm()) for a, b in pairs)
    of_eager, of_graph = (statistics.median(seconds[name]) for name in ("eager", "graph"))
    print(f"one picture of {height}x{width}, {given.tokens} tokens, {torch.get_num_threads()} threads, float32")
    print(f"PyTorch {torch.__version__}: {of_eager:.2f} s; onnxruntime: {of_graph:.2f} s; medians of {given.runs} runs")
    print(f"onnxruntime takes {of_graph / of_eager:.2f} times as long; largest relative difference {worst:.1e}")


if __name__ == "__main__":
    main()
