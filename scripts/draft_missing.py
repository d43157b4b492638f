"""How often a draft is wrong where it is sure, if parts of both models are missing: the figures of docs/new-model.md.

    python scripts/draft_missing.py    # some 2 minutes

Names and shapes are those of tests/data/draft, the truth is that of tests/mapping/draft. Each of five pairs of models
is drafted both ways, 12 times, each time without some families of names on either side.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from converter.mapping.draft import Named
from converter.mapping.draft.copies import match_shared
from converter.mapping.draft.names import take_apart
from tests.mapping.draft import test_detector as detector
from tests.mapping.draft.test_draft import PEERS, stored, truth_of

Known = set[tuple[str, str]]
SEEDS = 12


def models() -> Iterator[tuple[str, list[Named], list[Named], Known]]:
    """Source, target, and what becomes what; each pair in both directions."""
    pairs = [(source, stored(source), stored(target), truth_of(source, target)) for source, target in PEERS]
    sources = detector.sources()
    # of a module with several names, each is right
    several = {(t.name, f"bbox_embed.0.{t.numbers}") for t in sources if t.numbers}
    pairs.append((detector.SOURCE, sources, stored(detector.TARGET), {*detector.truth(), *several}))
    for name, left, right, known in pairs:
        yield name, left, right, known
        yield f"to {name}", right, left, {(target, source) for source, target in known}


def judged(left: list[Named], right: list[Named], known: Known) -> tuple[int, int, int]:
    """Matches of one tensor with one: sure and right, sure and wrong, in doubt."""
    counts = [0, 0, 0]
    for match in match_shared(left, right, lambda _: None).matches:
        if match.op in ("concat", "split"):
            continue
        (source,), (target,) = match.sources, match.targets
        made = [(source.members[i][p].name, t.name) for i, params in target.members.items() for p, t in params.items()]
        counts[2 if match.doubt else 0 if known.issuperset(made) else 1] += 1
    return counts[0], counts[1], counts[2]


def main() -> None:
    for missing in (0.0, 0.02, 0.05, 0.2):
        total = [0, 0, 0]
        for seed in range(SEEDS if missing else 1):
            for name, left, right, known in models():
                chance = random.Random(f"{seed}{name}")
                parts = []
                for tensors in (left, right):
                    kept = {f for f in sorted({take_apart(t.name)[0] for t in tensors}) if chance.random() >= missing}
                    parts.append([tensor for tensor in tensors if take_apart(tensor.name)[0] in kept])
                counts = judged(parts[0], parts[1], known)
                total = [a + b for a, b in zip(total, counts, strict=True)]
        print(
            f"{missing:.0%} missing: {total[0]} sure and right, {total[1]} sure and wrong, {total[2]} in doubt",
            flush=True,
        )


if __name__ == "__main__":
    main()
