"""Tensors by name, in one safetensors file."""

from pathlib import Path
from typing import Any

from ivr_dagster.io_managers.artifacts import ArtifactIOManager


class TensorsIOManager(ArtifactIOManager[dict[str, Any]]):
    """Embeddings as torch tensors, memory-mapped when read."""

    def write(self, value: dict[str, Any], path: Path) -> None:
        """Write contiguous copies; dtype and bits are kept."""
        from safetensors.torch import save_file

        save_file({name: rows.contiguous() for name, rows in value.items()}, path)

    def read(self, path: Path) -> dict[str, Any]:
        """The tensors, on the CPU."""
        from safetensors.torch import load_file

        return dict(load_file(path))
