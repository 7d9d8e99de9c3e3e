"""Where bits are lost, checked piece by piece with one model call per token."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.evaluation.diagnosis import OUTPUT_SIDE, Diagnosis, output_rows, split_at_shared_boundaries
from ivr_dagster.core.scoring.bits_per_byte import IGNORED, BitsPerByte, ScoringTokenizer, bits_per_byte

END = 256
TEXTS = ["The quick The", "", "quack quick", "own The"]
# ids up to 255 are bytes; "The " is sacrificed, "quick" and "own" are new, and "own" is not in the training text
BASE = {257: b"The ", 258: b"qu"}
OWN = {257: b"quick", 258: b"qu", 259: b"own"}
NEW, UNSEEN = {257, 259}, {259}


def encoder(pieces: dict[int, bytes]) -> ScoringTokenizer:
    def tokens(rest: bytes) -> Iterator[int]:
        while rest:
            token = next((i for i, piece in pieces.items() if rest.startswith(piece)), rest[0])
            yield token
            rest = rest[len(pieces.get(token, b"x")) :]

    sizes = np.array([len(pieces.get(token, b"x")) for token in range(300)])
    return ScoringTokenizer(lambda texts: [list(tokens(text.encode())) for text in texts], sizes, END)


def nats(model: Any, ids: list[int], token: int) -> float:
    """The negative log-likelihood of a token after these ids, in nats."""
    import torch

    with torch.no_grad():
        logits = model.eval()(torch.tensor([[END, *ids]])).logits[0, -1]
    return -float(logits.double().log_softmax(-1)[token])


def score(model: Any, tokenizer: ScoringTokenizer, **options: Any) -> BitsPerByte:
    return bits_per_byte(model, tokenizer, TEXTS, context=16, context_bytes=50, **options)


def pieces_of(text: str, base: ScoringTokenizer, own: ScoringTokenizer) -> Iterator[tuple[list[int], list[int], int]]:
    """Indices of the base's and the own tokens of every piece, and its bytes."""
    ids = [each.encode([text])[0] for each in (base, own)]
    ends = [
        np.cumsum(each.token_bytes[np.array(i, dtype=int)]).tolist() for each, i in zip((base, own), ids, strict=True)
    ]
    start = 0
    for end in sorted(set(ends[0]) & set(ends[1])):
        yield *([n for n, at in enumerate(each) if start < at <= end] for each in ends), end - start
        start = end


def test_bits_by_kind_of_token_and_by_side(model: Any) -> None:
    import torch

    base, own = encoder(BASE), encoder(OWN)
    adapted = copy.deepcopy(model)
    torch.manual_seed(0)
    rows = model.get_output_embeddings().weight + 0.3 * torch.randn(300, 16)
    hybrid = copy.deepcopy(model)
    hybrid.get_output_embeddings().weight = torch.nn.Parameter(rows)
    for parameter in adapted.parameters():
        parameter.data += 0.1
    scores = {"base": score(model, base), "initialized": score(adapted, own), "other": score(adapted, encoder({}))}
    diagnosis = Diagnosis(scores["base"], scores["initialized"], base.token_bytes, own.token_bytes, NEW, UNSEEN)
    before = model.get_output_embeddings().weight
    with output_rows(model, {"wte": rows.detach()}):
        side = score(model, base, targets=diagnosis.targets())
    assert model.get_output_embeddings().weight is before
    result = diagnosis.result(scores, side)

    expected: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    for text in TEXTS:
        base_ids, own_ids = base.encode([text])[0], own.encode([text])[0]
        for of_base, of_own, size in pieces_of(text, base, own):
            token = own_ids[of_own[0]]
            kind = "new" if token in NEW else "kept"
            kind = "unseen" if token in UNSEEN else kind
            kind = "resegmented" if len(of_own) > 1 else kind
            sizes[kind] = sizes.get(kind, 0) + size
            losses = expected.setdefault(kind, dict.fromkeys(("base", "initialized", OUTPUT_SIDE), 0.0))
            losses["base"] += sum(nats(model, base_ids[:n], base_ids[n]) for n in of_base)
            own_losses = [nats(adapted, own_ids[:n], own_ids[n]) for n in of_own]
            losses["initialized"] += sum(own_losses)
            losses[OUTPUT_SIDE] += nats(hybrid, base_ids[: of_base[0]], token) + sum(own_losses[1:])
    assert list(result) == ["kept", "new", "unseen", "resegmented"]
    assert {kind: text.bytes for kind, text in result.items()} == sizes
    for kind, text in result.items():
        assert text.bits.keys() == expected[kind].keys()
        for variant, value in expected[kind].items():
            assert text.bits[variant] == pytest.approx(value / math.log(2), rel=1e-4), (kind, variant)
    for variant in ("base", "initialized"):
        assert sum(text.bits[variant] for text in result.values()) == pytest.approx(scores[variant].bits)


def test_documents_that_the_base_does_not_encode_exactly_are_left_out(model: Any) -> None:
    base, own = encoder(BASE), encoder(OWN)
    dropping = ScoringTokenizer(
        lambda texts: [[i for i in ids if i != ord("w")] for ids in base.encode(texts)], base.token_bytes, END
    )
    scores = {"base": score(model, dropping), "initialized": score(model, own)}
    diagnosis = Diagnosis(scores["base"], scores["initialized"], base.token_bytes, own.token_bytes, NEW, UNSEEN)
    targets = diagnosis.targets()
    assert [(each != IGNORED).any() for each in targets] == [True, False, True, False]
    result = diagnosis.result(scores, score(model, dropping, targets=targets))
    assert sum(text.bytes for text in result.values()) == len(TEXTS[0]) + len(TEXTS[2])
    assert "unseen" not in result
    lossy = ScoringTokenizer(lambda texts: [[] for _ in texts], base.token_bytes, END)
    nothing = BitsPerByte(
        scores["base"].document_bytes,
        [np.array(ids, dtype=np.int64) for ids in lossy.encode(TEXTS)],
        [np.zeros(0)] * 4,
        np.zeros(4, dtype=np.int64),
        300,
    )
    diagnosis = Diagnosis(nothing, scores["initialized"], base.token_bytes, own.token_bytes, NEW, UNSEEN)
    assert diagnosis.result({"base": nothing}, nothing) == {}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.data())
def test_pieces_are_the_finest_common_cut(base: list[int], data: st.DataObject) -> None:
    total, own = sum(base), list[int]()
    while (left := total - sum(own)) > 0:
        own.append(data.draw(st.integers(1, min(4, left))))
    pieces = split_at_shared_boundaries(np.array(base), np.array(own))
    ends = [{sum(each[: n + 1]) for n in range(len(each))} for each in (base, own)]
    assert np.cumsum(pieces.sizes).tolist() == sorted(ends[0] & ends[1])
    begins = [0, *np.cumsum(pieces.sizes)[:-1].tolist()]
    assert [sum(base[:n]) for n in pieces.base] == [sum(own[:n]) for n in pieces.own] == begins
    counts = np.diff([*pieces.own, len(own)])
    assert pieces.is_single.tolist() == (counts == 1).tolist()
