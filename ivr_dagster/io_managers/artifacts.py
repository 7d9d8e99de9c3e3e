"""What all IO managers share: where an artifact lies, that it is complete or absent, and that it is as it was written.

Dagster knows an artifact by its asset key; `ArtifactPaths` knows its place. Writing goes to a temporary name beside
it and is renamed whole, with a manifest. Reading refuses what is not as its manifest says.
"""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import dagster as dg
from upath import UPath

from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.provenance import code_revision, provenance, reset_peak_memory
from ivr_dagster.pipeline import ArtifactPaths, settings_hash, stage_of
from ivr_dagster.storage.allocator import give_back_freed_memory
from ivr_dagster.storage.atomic import atomic_write, publish, recover, sweep
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
    """See that a folder about to be filled or replaced is not somebody else's.

    Raises:
        InputError: it holds files and no manifest of ours, or is a file.
    """
    if place.is_file():
        raise InputError("a folder is to be written here, found a file", where=place, remedy="Choose another place.")
    if place.is_dir() and any(place.iterdir()) and not (place / MANIFEST).is_file():
        raise InputError(
            "this folder holds files that ivr_dagster did not write, it is not touched",
            where=place,
            remedy="Move them away or choose another folder.",
        )


def mark_folder(folder: Path, asset: str, run_id: str) -> None:
    """Mark a folder that fills up in its place as an artifact made by this run; what it holds is not known yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(Manifest(asset, run_id), folder, folder=True)


def refuse_damaged(asset: str, place: Path) -> None:
    """See that an artifact is as it was written.

    Raises:
        InputError: it is not; the message names the file and what makes the artifact again.
    """
    faults = find_damage(place)
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise InputError(
            f"{asset} is not as it was written: {faults[0]}{more}",
            remedy=f"Materialize {asset} again: `ivr {stage_of(asset)}`.",
        )


class ArtifactIOManager(dg.UPathIOManager, Generic[T]):
    """Reads and writes one kind of artifact at its place below the artifacts folder.

    Attributes:
        editable: whether people may change it by hand.
    """

    editable = False

    def __init__(self, paths: ArtifactPaths) -> None:
        super().__init__(base_path=UPath(paths.root))
        self._paths = paths

    def _get_path_without_extension(self, context: dg.InputContext | dg.OutputContext) -> UPath:
        return UPath(self._paths[context.asset_key.path[-1]])

    def _refuse_external(self, context: dg.OutputContext) -> None:
        asset = context.asset_key.path[-1]
        if asset in self._paths.replaced:
            raise InputError(
                f"{asset} was to be made, but is brought by a setting and only read", where=self._paths[asset]
            )

    def get_metadata(self, context: dg.OutputContext, obj: Any) -> dict[str, dg.MetadataValue]:
        """What every artifact says of itself: size, settings and code it was made with, memory that it took."""
        settings = context.resources.settings
        values = settings.values_for(context.asset_key.path[-1])
        told = provenance(Path(str(self._get_path(context))), values)
        give_back_freed_memory()  # several assets may be made by one process, one after the other
        reset_peak_memory()
        return told

    @abstractmethod
    def write(self, value: T, path: Path) -> None:
        """Write `value` to `path`, an empty file."""

    @abstractmethod
    def read(self, path: Path) -> T:
        """Read what `write` wrote."""

    def dump_to_path(self, context: dg.OutputContext, obj: T, path: UPath) -> None:
        """Write under a temporary name and rename.

        Raises:
            InputError: a folder stands there, or a person brings this artifact.
        """
        place = Path(str(path))
        self._refuse_external(context)
        if place.is_dir():
            raise InputError(
                "a file is to be written here, found a folder", where=place, remedy="Name a file in it instead."
            )
        sweep(place.parent)
        with atomic_write(place) as staged:
            staged.touch()  # libraries that are no Python hardly say what they may not write
            self.write(obj, staged)
            known = read_manifest(place)
            before = describe_files(place.parent, [place], known.files if known else None) if place.exists() else {}
            found = describe_files(staged.parent, [staged])[staged.name]
            write_manifest(
                Manifest(
                    context.asset_key.to_user_string(),
                    context.run_id,
                    _made_of(context),
                    files={place.name: found},
                    before=before,
                    editable=self.editable,
                ),
                place,
                folder=False,
            )

    def load_from_path(self, context: dg.InputContext, path: UPath) -> T:
        """Read an artifact that must be there.

        Raises:
            InputError: it is not; the message names the asset to materialize.
        """
        place = Path(str(path))
        reset_peak_memory()
        asset = context.asset_key.path[-1]
        if asset not in self._paths.external:  # nothing is moved about where we only read
            recover(place)
        if not place.exists():
            raise InputError(
                f"{asset} was asked for and is not there", where=place, remedy=f"Materialize {asset} first."
            )
        if asset not in self._paths.external:
            refuse_damaged(asset, place)
        if place.is_file():
            place.open("rb").close()  # nor what they may not read
        return self.read(place)


class FolderIOManager(ArtifactIOManager[T]):
    """Handles of folders: the asset writes a folder under a temporary name, here it gets its place.

    A handle has a `path`, and its class makes one from a path.
    """

    handle: type[Any]

    def files(self, folder: Path) -> Iterable[Path]:
        """The files that an artifact consists of; others in its folder are for those who make it."""
        return visible_files(folder)

    def dump_to_path(self, context: dg.OutputContext, obj: T, path: UPath) -> None:
        """Give the staged folder its place, in one rename.

        Raises:
            InputError: a file or a folder of somebody else's stands there, or a person brings this artifact.
        """
        self._refuse_external(context)
        staged, place = Path(obj.path), Path(str(path))  # type: ignore[attr-defined]
        refuse_foreign(place)
        known = read_manifest(place)
        manifest = Manifest(
            context.asset_key.to_user_string(),
            context.run_id,
            _made_of(context),
            files=describe_files(staged, self.files(staged), known.files if known else None),
            whole=staged != place,
        )
        write_manifest(manifest, staged, folder=True)
        if staged == place:
            return  # a training folder, which fills up in its place and is whole once `final_model` is there
        publish(staged, place)
        sweep(place.parent)

    def write(self, value: T, path: Path) -> None:
        """Not used: folders are written by their assets."""
        raise NotImplementedError

    def read(self, path: Path) -> T:
        """A handle of the folder."""
        value: T = self.handle(path)
        return value


def _made_of(context: dg.OutputContext) -> dict[str, Any]:
    """Code, settings and inputs of what is being written, for its manifest."""
    step: Any = context.step_context
    values = context.resources.settings.values_for(context.asset_key.path[-1])
    parents = step.job_def.asset_layer.asset_graph.get(context.asset_key).parent_keys
    known = {key.to_user_string(): step.maybe_fetch_and_get_input_asset_version_info(key) for key in parents}
    return {
        "made_by": code_revision(),
        "settings": values,
        "config_hash": settings_hash(values),
        "upstream": {
            name: info.data_version.value for name, info in sorted(known.items()) if info and info.data_version
        },
    }
