"""What all IO managers share: artifacts are complete or absent, and unchanged since they were written.

`pipeline.ArtifactPaths` maps asset keys to paths. Artifacts are written under a temporary name, with a manifest, and
renamed. Readers refuse an artifact that differs from its manifest.
"""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import dagster as dg
from upath import UPath

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.provenance import code_revision, provenance, reset_peak_memory
from ivr_dagster.pipeline import settings_hash, stage_of
from ivr_dagster.storage.allocator import release_freed_memory
from ivr_dagster.storage.atomic import atomic_write, publish
from ivr_dagster.storage.manifest import (
    MANIFEST,
    Manifest,
    describe_files,
    find_damage,
    read_manifest,
    visible_files,
    write_manifest,
)

T = TypeVar("T")


def refuse_foreign(place: Path) -> None:
    """Check that a folder may be filled or replaced.

    Raises:
        InputError: it is a file, or contains files that ivr_dagster did not write.
    """
    if place.is_file():
        raise InputError("expected a folder to write to, found a file", where=place, remedy="Choose another path.")
    if place.is_dir() and any(place.iterdir()) and not (place / MANIFEST).is_file():
        raise InputError(
            "this folder contains files that ivr_dagster did not write, so it is not overwritten",
            where=place,
            remedy="Move them away or choose another folder.",
        )


def mark_folder(folder: Path, asset: str, run_id: str) -> None:
    """Mark a folder that is filled in place as an artifact of this run, with unknown content.

    Raises:
        InputError: as of :func:`refuse_foreign`.
    """
    refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(Manifest(asset, run_id), folder, folder=True)


def refuse_damaged(asset: str, place: Path) -> None:
    """Check that an artifact is unchanged since it was written.

    Raises:
        InputError: it is not; the message names the file and the command that builds it again.
    """
    faults = find_damage(place)
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise InputError(
            f"{asset} is damaged: {faults[0]}{more}", remedy=f"Materialize {asset} again: `ivr {stage_of(asset)}`."
        )


class ArtifactIOManager(dg.UPathIOManager, Generic[T]):
    """Reads and writes one kind of artifact.

    Attributes:
        editable: whether users may edit it.
    """

    editable = False

    def __init__(self, paths: ArtifactPaths) -> None:
        super().__init__(base_path=UPath(paths.root))
        self._paths = paths

    def _get_path_without_extension(self, context: dg.InputContext | dg.OutputContext) -> UPath:
        return UPath(self._paths[context.asset_key.path[-1]])

    def get_metadata(self, context: dg.OutputContext, obj: Any) -> dict[str, dg.MetadataValue]:
        """Size, settings, code revision and peak memory."""
        settings, asset = context.resources.settings, context.asset_key.path[-1]
        metadata = provenance(Path(str(self._get_path(context))), settings.values_for(asset), settings.one_off(asset))
        release_freed_memory()  # one process may build several assets
        reset_peak_memory()
        return metadata

    @abstractmethod
    def write(self, value: T, path: Path) -> None:
        """Write `value` to `path`, an empty file."""

    @abstractmethod
    def read(self, path: Path) -> T:
        """Read what `write` wrote."""

    def dump_to_path(self, context: dg.OutputContext, obj: T, path: UPath) -> None:
        """Write a file under a temporary name and rename it.

        Raises:
            InputError: the path is a folder, or a setting names an external artifact instead.
        """
        place = Path(str(path))
        self._refuse_external(context)
        if place.is_dir():
            raise InputError(
                "expected a file to write to, found a folder", where=place, remedy="Name a file inside it instead."
            )
        with atomic_write(place) as staged:
            staged.touch()  # a clear error if the file may not be written; native libraries rarely give one
            self.write(obj, staged)
            before = describe_files(place.parent, [place], _known_files(place)) if place.exists() else {}
            files = {place.name: describe_files(staged.parent, [staged])[staged.name]}
            manifest = self._manifest(context, files=files, before=before, editable=self.editable)
            write_manifest(manifest, place, folder=False)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> T:
        """Read an artifact.

        Raises:
            InputError: it is missing or damaged; the message names the asset to materialize.
        """
        place = Path(str(path))
        reset_peak_memory()
        asset = context.asset_key.path[-1]
        if not place.exists():
            raise InputError(
                f"{asset} was requested, but does not exist", where=place, remedy=f"Materialize {asset} first."
            )
        if asset not in self._paths.external:
            refuse_damaged(asset, place)
        if place.is_file():
            place.open("rb").close()  # a clear error if the file may not be read
        return self.read(place)

    def _refuse_external(self, context: dg.OutputContext) -> None:
        asset = context.asset_key.path[-1]
        if asset in self._paths.replaced:
            raise InputError(
                f"{asset} cannot be materialized: a setting names an external artifact instead",
                where=self._paths[asset],
            )

    def _manifest(self, context: dg.OutputContext, **fields: Any) -> Manifest:
        """The manifest of an artifact that is being written: code revision, setting values, versions of its inputs."""
        step: Any = context.step_context
        settings = context.resources.settings.values_for(context.asset_key.path[-1])
        asset = step.job_def.asset_layer.asset_graph.get(context.asset_key)
        inputs = {
            key.to_user_string(): step.maybe_fetch_and_get_input_asset_version_info(key) for key in asset.parent_keys
        }
        made_of = {
            "made_by": code_revision(),
            "code_version": asset.code_version,
            "settings": settings,
            "config_hash": settings_hash(settings),
            "upstream": {
                name: info.data_version.value for name, info in sorted(inputs.items()) if info and info.data_version
            },
        }
        return Manifest(context.asset_key.to_user_string(), context.run_id, made_of, **fields)


class FolderIOManager(ArtifactIOManager[T]):
    """Handles of folders: the asset writes a folder under a temporary name, and this renames it.

    A handle has a `path`, and its class creates one from a path.
    """

    handle: type[Any]

    def files(self, folder: Path) -> Iterable[Path]:
        """The files that belong to the artifact."""
        return visible_files(folder)

    def dump_to_path(self, context: dg.OutputContext, obj: T, path: UPath) -> None:
        """Rename the staged folder. A training folder is already in place and only gets its manifest.

        Raises:
            InputError: the path is a file or a foreign folder, or a setting names an external artifact instead.
        """
        self._refuse_external(context)
        staged, place = Path(obj.path), Path(str(path))  # type: ignore[attr-defined]
        refuse_foreign(place)
        files = describe_files(staged, self.files(staged), _known_files(place))
        write_manifest(self._manifest(context, files=files, whole=staged != place), staged, folder=True)
        if staged != place:
            publish(staged, place)

    def write(self, value: T, path: Path) -> None:
        """Not used: assets write their folders."""
        raise NotImplementedError

    def read(self, path: Path) -> T:
        """A handle of the folder."""
        value: T = self.handle(path)
        return value


def _known_files(place: Path) -> Any:
    manifest = read_manifest(place)
    return manifest.files if manifest else None
