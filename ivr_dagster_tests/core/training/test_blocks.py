from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.training.blocks import (
    BlockCounts,
    pack_blocks,
    read_blocks,
    used_ids,
    write_blocks,
)
from ivr_dagster.errors import InputError

DOCUMENTS = st.lists(st.lists(st.integers(0, 98), max_size=40), max_size=12)


def arrays(documents: list[list[int]]) -> Iterator[np.ndarray]:
    return (np.array(document, dtype=np.uint16) for document in documents)


@given(DOCUMENTS, st.integers(2, 17))
def test_blocks_are_the_documents_with_end_tokens_and_drop_less_than_a_block(
    documents: list[list[int]], block_size: int
) -> None:
    stream = [number for document in documents if document for number in [*document, 99]]
    blocks = list(pack_blocks(arrays(documents), block_size=block_size, eos_id=99))
    assert all(block.shape == (block_size,) and block.dtype == np.int32 for block in blocks)
    packed = [int(number) for block in blocks for number in block]
    assert packed == stream[: len(packed)]
    assert 0 <= len(stream) - len(packed) < block_size


def test_blocks_are_packed_lazily() -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.arange(10)

    assert next(pack_blocks(endless(), block_size=4, eos_id=99)).tolist() == [0, 1, 2, 3]


def test_written_blocks_are_read_by_datasets(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [], [4, 5], [6, 7, 8, 9]]
    counts = write_blocks(arrays(documents), tmp_path / "blocks", block_size=5, eos_id=99, vocab_size=100)
    assert counts == BlockCounts(documents=3, tokens=12, blocks=2, dropped_tokens=2)
    dataset = read_blocks(tmp_path / "blocks")
    assert dataset["input_ids"][:].tolist() == [[1, 2, 3, 99, 4], [5, 99, 6, 7, 8]]
    assert str(dataset.features["input_ids"]) == "List(Value('int32'), length=5)"
    assert used_ids(dataset).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 99]
    assert [path.name for path in tmp_path.iterdir()] == ["blocks"]


def test_same_documents_give_the_same_files_and_others_another_fingerprint(tmp_path: Path) -> None:
    fingerprints = []
    for name, documents in (("a", [[1, 2, 3, 4]]), ("b", [[1, 2, 3, 4]]), ("c", [[1, 2, 3, 5]])):
        write_blocks(arrays(documents), tmp_path / name, block_size=2, eos_id=99, vocab_size=100)
        fingerprints.append(read_blocks(tmp_path / name).with_format(None)._fingerprint)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    a, b, c = ((tmp_path / name / "state.json").read_text() for name in "abc")
    assert a == b != c


def test_blocks_replace_earlier_ones(tmp_path: Path) -> None:
    for document in ([1] * 50, [2] * 9):
        write_blocks(arrays([document]), tmp_path / "blocks", block_size=10, eos_id=99, vocab_size=100)
    assert read_blocks(tmp_path / "blocks")["input_ids"][:].tolist() == [[2] * 9 + [99]]


def test_text_for_less_than_a_block_is_rejected_and_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"3 tokens in 1 documents, fewer than one block of 8.*smaller --block-size"):
        write_blocks(arrays([[1, 2]]), tmp_path / "blocks", block_size=8, eos_id=99, vocab_size=100)
    assert list(tmp_path.iterdir()) == []


def test_id_outside_the_vocabulary_is_rejected_with_its_document(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="document 1 contains the id 77, the vocabulary ends at 49"):
        write_blocks(arrays([[1], [2, 77]]), tmp_path / "blocks", block_size=2, eos_id=0, vocab_size=50)
    with pytest.raises(InputError, match="document 0 contains the id -1"):
        write_blocks(iter([np.array([-1])]), tmp_path / "blocks", block_size=2, eos_id=0, vocab_size=50)
    with pytest.raises(InputError, match="end-of-text id 50"):
        write_blocks(arrays([[1]]), tmp_path / "blocks", block_size=2, eos_id=50, vocab_size=50)


def test_block_of_one_token_is_rejected() -> None:
    with pytest.raises(InputError, match="a block of 1 tokens"):
        next(pack_blocks(arrays([[1]]), block_size=1, eos_id=0))


def test_folder_without_blocks_is_rejected_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: cannot read training blocks"):
        read_blocks(tmp_path / "nowhere")
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(InputError, match=r"texts: the dataset has the columns \['text'\], not input_ids"):
        read_blocks(tmp_path / "texts")
