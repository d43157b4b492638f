"""Random tables of a random small spec: every kind of rule, in any mixture, always sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from converter.mapping.spec import Spec, Variant
from converter.mapping.table import SavedAs, Table

LAYERS, WIDTH = 3, 4


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Up to eight groups of tensors: single ones, or one for each layer, of one or two axes."""
    entries = []
    for number in range(draw(st.integers(1, 8))):
        layered = draw(st.booleans())
        name = f"group{number}.layer.{{layer}}.w" if layered else f"group{number}.w"
        shape = [str(2 * draw(st.integers(1, 3))), "width"][: draw(st.integers(1, 2))]
        entries.append({"name": name, "shape": shape, **({"each": {"layer": "layers"}} if layered else {})})
    variant = Variant("only", "the only one", (), {"layers": LAYERS, "width": WIDTH})
    return Spec("random", "a random spec", "0" * 64, (variant,), (), tuple(entries))


@st.composite
def tables(draw: st.DrawFn, spec: Spec, name: str) -> Table:
    """A format of `spec`: each group renamed, moved, cut in pieces or, where two have one shape, joined to one."""
    rules: list[dict[str, Any]] = []
    entries = list(spec.entries)
    while entries:
        entry = entries.pop(draw(st.integers(0, len(entries) - 1)))
        offset = draw(st.integers(0, 2))
        counter = f"{{{draw(st.integers(1, 3))}*layer + {offset}}}" if "each" in entry else "x"
        source = f"{name}.{len(rules)}.{counter}"
        first, *rest = (int(size) if size != "width" else WIDTH for size in entry["shape"])
        shape = [first, *rest]
        partner = next(
            (e for e in entries if e["shape"] == entry["shape"] and ("each" in e) == ("each" in entry)), None
        )
        kinds = ["rename", "transpose", "reshape", "permute", "reorder", "cut", "chain", *(["join"] if partner else [])]
        kind = draw(st.sampled_from(kinds))
        rule: dict[str, Any] = {"source": source, "target": entry["name"]}
        backwards = list(range(len(shape)))[::-1]
        turned = {"op": "transpose", "axes": backwards}
        blocks = {"op": "permute_blocks", "axis": 0, "blocks": [2, first // 2], "order": [1, 0]}
        cut = {"op": "concat", "axis": 0, "sizes": [1, first - 1]}
        if kind == "transpose":
            rule["ops"] = [turned]
        elif kind == "reshape":
            rule["ops"] = [{"op": "reshape", "from": [first * (rest or [1])[0]], "to": shape}]
        elif kind == "permute":
            rule["ops"] = [blocks]
        elif kind == "reorder":
            rule["ops"] = [{"op": "reorder", "axis": 0, "index": draw(st.permutations(range(first)))}]
        elif kind == "cut":
            rule |= {"source": [f"{source}.a", f"{source}.b"], "ops": [cut]}
        elif kind == "chain":
            rule |= {"source": [f"{source}.a", f"{source}.b"], "ops": [cut, blocks]}
        elif kind == "join" and partner:
            entries.remove(partner)
            both = [entry["name"], partner["name"]]
            rule |= {"target": both, "ops": [{"op": "split", "axis": 0, "sizes": [first, first]}]}
        rules.append(rule)
    pointed = tuple((f"/rules/{i}", rule) for i, rule in enumerate(rules))
    prefix = draw(st.sampled_from(["", "module."]))
    return Table(
        name, name, "0" * 64, Path(name), spec, ("module.",), {}, SavedAs(prefix=prefix), {}, {}, {"rules": pointed}
    )
