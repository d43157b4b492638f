"""Tests, in the wings of the package; `peers/` needs other packages, and what stands here is of the whole house.

support/ has what they share: small models and formats, crafted files, a stand-in of the Hub and of the official code.
data/ was recorded from the official code, from peers and from timm: it is read, and nothing here writes it.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
