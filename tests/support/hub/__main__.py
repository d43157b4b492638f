"""Run a program beside an empty Hub: python -m tests.support.hub COMMAND...

HF_ENDPOINT is where it is, HF_TOKEN that of a user `org`, who may write.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.hub.server import HubServer

hub = HubServer()
with TemporaryDirectory(prefix="hub") as folder:
    hub.reset(Path(folder))
    hub.tokens["hf_token_of_org"] = ("org", "write")
    hub.start()
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_token_of_org", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(sys.argv[1:], env={**os.environ, **settings}, check=False)
    hub.stop()
sys.exit(done.returncode)
