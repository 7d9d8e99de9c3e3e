"""Equal content has equal hashes, different content different ones."""

import hashlib
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest
import torch

from ivr_dagster.storage.content_hash import BLOCK, content_hash, hash_files


def test_text_hash_is_blake2b_of_its_bytes() -> None:
    assert content_hash("한국어") == hashlib.blake2b("한국어".encode(), digest_size=16).hexdigest()


TABLES = [
    pl.DataFrame({"a": ["x", "y"], "n": [1, 2]}),
    pl.DataFrame({"a": ["y", "x"], "n": [1, 2]}),
    pl.DataFrame({"a": ["xy", ""], "n": [1, 2]}),
    pl.DataFrame({"a": ["", "xy"], "n": [1, 2]}),
    pl.DataFrame({"b": ["x", "y"], "n": [1, 2]}),
    pl.DataFrame({"n": [1, 2], "a": ["x", "y"]}),
    pl.DataFrame({"a": ["x", "y"], "n": [1, 3]}),
    pl.DataFrame({"a": ["x", "y"], "n": [1.0, 2.0]}),
    pl.DataFrame({"a": ["x", "y"], "n": [1, 2]}, schema={"a": pl.String, "n": pl.UInt32}),
    pl.DataFrame({"a": ["x"], "n": [1]}),
    pl.DataFrame(schema={"a": pl.String, "n": pl.Int64}),
]


def test_different_tables_have_different_hashes() -> None:
    assert len({content_hash(table) for table in TABLES}) == len(TABLES)


def test_table_hash_ignores_chunks() -> None:
    parts = pl.concat([TABLES[0].head(1), TABLES[0].tail(1)], rechunk=False)
    assert parts.n_chunks() == 2
    assert content_hash(parts) == content_hash(TABLES[0])
    longer = pl.DataFrame({"a": ["w", "x", "y", "z"], "n": [0, 1, 2, 3]})
    assert content_hash(longer.slice(1, 2)) == content_hash(TABLES[0])


def test_different_tensors_have_different_hashes() -> None:
    rows = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    nan = rows.clone()
    nan[0, 0] = float("nan")
    payload = nan.clone()
    payload.view(torch.int32)[0, 0] += 1
    found = [
        {"wte": rows},
        {"lm_head": rows},
        {"wte": rows, "lm_head": rows},
        {"wte": rows.reshape(4)},
        {"wte": rows.to(torch.bfloat16)},
        {"wte": rows.to(torch.float16)},
        {"wte": rows.view(torch.int32)},
        {"wte": rows.T},
        {"wte": rows * torch.tensor([[1.0, 1.0], [-1.0, 1.0]])},  # -0.0
        {"wte": nan},
        {"wte": payload},
    ]
    assert len({content_hash(tensors) for tensors in found}) == len(found)


def test_tensor_hash_ignores_order_and_layout() -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    other = torch.ones(2)
    assert content_hash({"a": rows, "b": other}) == content_hash({"b": other, "a": rows})
    assert content_hash({"a": rows.T.contiguous().T}) == content_hash({"a": rows})


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def test_different_folders_have_different_hashes(tmp_path: Path) -> None:
    large = b"x" * (BLOCK + 10)
    variants: list[dict[str, bytes]] = [
        {"a": b"1", "b": b"2"},
        {"a": b"2", "b": b"1"},
        {"a": b"12", "b": b""},
        {"a": b"1", "c": b"2"},
        {"a": b"1", "sub/b": b"2"},
        {"a": b"1"},
        {"a": large},
        {"a": large + b"x"},
        {"a": large[:-1] + b"y"},
        {},
    ]
    folders = [folder(tmp_path / str(n), files) for n, files in enumerate(variants)]
    folders[-1].mkdir()
    for one, other in combinations(folders, 2):
        assert content_hash(one) != content_hash(other)


def test_folder_hash_ignores_location_and_hidden_files(tmp_path: Path) -> None:
    files = {"a": b"1", "sub/b": b"2", "sub.c": b"3"}
    one = folder(tmp_path / "one", files)
    other = folder(tmp_path / "else" / "where", dict(reversed(files.items())) | {".ivr.json": b"{}", "sub/.x": b""})
    (other / "empty").mkdir()
    assert content_hash(one) == content_hash(other)


def test_hash_files_ignores_order(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    chosen = hash_files(root, [root / "a", root / "c"])
    assert chosen == hash_files(root, iter([root / "c", root / "a"]))
    assert chosen != hash_files(root, [root / "a", root / "b"])
    assert hash_files(root, root.iterdir()) == content_hash(root)


def test_path_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="missing"):
        content_hash(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file"):
        content_hash(tmp_path / "file")


@pytest.mark.parametrize("value", [5, None, ["x"], b"x"])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        content_hash(value)
