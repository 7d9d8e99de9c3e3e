"""Embeddings out of real model classes and back into them."""

from typing import Any

import pytest
import torch

from ivr_dagster.core.embedding.extract import extract_embeddings, replace_embeddings
from ivr_dagster.core.embedding.initialize import initialize_embeddings
from ivr_dagster.core.embedding.reorder import kept_rows_equal, reorder_embeddings

KEYS = {"tied": {"wte"}, "untied": {"wte", "lm_head"}, "bias": {"wte", "lm_head", "lm_head_bias"}}


def test_an_output_matrix_is_extracted_only_where_it_is_not_the_input_matrix(
    model: Any, request: pytest.FixtureRequest
) -> None:
    tensors = extract_embeddings(model)
    assert tensors.keys() == KEYS[request.node.callspec.params["model"].split()[-1]]
    assert torch.equal(tensors["wte"], model.get_input_embeddings().weight)
    head = model.get_output_embeddings()
    assert torch.equal(tensors.get("lm_head", tensors["wte"]), head.weight)
    if "lm_head_bias" in tensors:
        assert torch.equal(tensors["lm_head_bias"], head.bias)


def test_extracted_tensors_are_copies_in_the_models_dtype(model: Any) -> None:
    model = model.to(torch.bfloat16)
    tensors = extract_embeddings(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert tensors["wte"].dtype == torch.bfloat16
    assert tensors["wte"].abs().sum() > 0
    assert not any(rows.requires_grad for rows in tensors.values())


def test_what_is_put_back_is_there_and_what_was_tied_stays_tied(model: Any) -> None:
    tensors = {name: torch.randn_like(rows) for name, rows in extract_embeddings(model).items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == ("lm_head" not in tensors)
    replace_embeddings(model, tensors)
    assert extract_embeddings(model).keys() == tensors.keys()
    assert all(torch.equal(rows, tensors[name]) for name, rows in extract_embeddings(model).items())
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_what_was_tied_stays_tied_through_a_folder(model: Any, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    tensors = {name: torch.randn_like(rows) for name, rows in extract_embeddings(model).items()}
    replace_embeddings(model, tensors)
    model.save_pretrained(tmp_path)
    back = extract_embeddings(AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(rows, tensors[name]) for name, rows in back.items())


@pytest.mark.parametrize("strategy", ["constituents", "zeros"])
def test_logits_of_kept_ids_are_bitwise_the_bases_on_text_without_new_tokens(model: Any, strategy: str) -> None:
    base = extract_embeddings(model)
    sources = [-1 if n in (5, 20) else n for n in range(22)]  # two rows of padding
    inputs = torch.tensor([[n for n in range(22) if sources[n] >= 0][:15]])
    with torch.no_grad():
        before = model(inputs).logits
    constituents = {5: [1, 2], 20: [3, 4, 6]}
    tensors = initialize_embeddings(reorder_embeddings(base, sources), base, constituents, strategy=strategy)
    assert kept_rows_equal(base, tensors, sources)
    replace_embeddings(model, tensors)
    with torch.no_grad():
        after = model(inputs).logits
    kept = [n for n in range(24) if n not in (5, 20)]
    assert torch.equal(after[..., kept], before[..., kept])
    assert not torch.equal(after[..., [5, 20]], before[..., [5, 20]])
