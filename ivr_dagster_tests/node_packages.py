"""Scripts in `node/` that read our files with packages from npm; `make node` installs them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = Path(__file__).parent / "node"
needs_node_packages = pytest.mark.skipif(
    not (NODE / "node_modules").is_dir(), reason="node packages are missing: make node"
)


def in_node(script: str, argument: Path, folder: Path, **request: Any) -> dict[str, Any]:
    """The result of a script in `node/`."""
    asked, result = folder / "request.json", folder / "result.json"
    asked.write_text(json.dumps(request))
    command = ["node", str(NODE / script), str(argument), str(asked), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(result.read_text())
    return values
