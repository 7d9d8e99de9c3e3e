"""Tensors by name, in one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ivr_dagster.core.embedding.fit import FittedEmbeddings
from ivr_dagster.core.model.folder import InitializationCompute
from ivr_dagster.io_managers.artifacts import ArtifactIOManager

_COMPUTE = "initialization_compute"


class TensorsIOManager(ArtifactIOManager[dict[str, Any]]):
    """Embeddings as torch tensors, memory-mapped when read."""

    def write(self, value: dict[str, Any], path: Path) -> None:
        """Write contiguous copies; dtype and bits are kept."""
        _save(value, path)

    def read(self, path: Path) -> dict[str, Any]:
        """The tensors, on the CPU."""
        return _load(path)


class FittedEmbeddingsIOManager(ArtifactIOManager[FittedEmbeddings]):
    """`fitted_embeddings`: tensors, and in the file's metadata the tokens that were computed to fit them."""

    def write(self, value: FittedEmbeddings, path: Path) -> None:
        """Write contiguous copies; dtype and bits are kept."""
        _save(value.tensors, path, {_COMPUTE: json.dumps(asdict(value.compute))})

    def read(self, path: Path) -> FittedEmbeddings:
        """The tensors, on the CPU, and the tokens computed."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            compute = json.loads((file.metadata() or {}).get(_COMPUTE, "{}"))
        return FittedEmbeddings(_load(path), InitializationCompute(**compute))


def _save(tensors: Mapping[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    save_file({name: rows.contiguous() for name, rows in tensors.items()}, path, metadata)


def _load(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path))
