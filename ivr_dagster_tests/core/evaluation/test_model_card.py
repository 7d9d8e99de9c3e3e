"""The model card."""

from dataclasses import replace
from pathlib import Path

import yaml

from ivr_dagster.core.evaluation.figures import EvaluationReport, Variant
from ivr_dagster.core.evaluation.model_card import Provenance, license_of, model_card

REPORT = EvaluationReport(
    variants={name: Variant(bpb, 4.0, 25, 100) for name, bpb in (("base", 1.5), ("sft", 1.2))},
    token_saving=0.25,
    agreement=1.0,
    round_trip=1.0,
    new_tokens=8,
    new_tokens_used=6,
    heldout_documents=30,
    heldout_bytes=100,
    settings={"merge_scope": "within"},
)
SOURCE = Provenance(
    base_model="openai-community/gpt2",
    is_on_hub=True,
    base_version="607a30d",
    architecture="gpt2",
    corpus_digest="c0ffee",
    train_documents=1234,
    train_bytes=5_000_000,
    heldout_documents=56,
    rules=4000,
    vocabulary=50257,
)


def head(card: str) -> dict[str, object]:
    _, content, _ = card.split("---\n", 2)
    values: dict[str, object] = yaml.safe_load(content)
    return values


def test_card_head_is_valid_for_the_hub() -> None:
    card = model_card(REPORT, SOURCE)
    assert card.startswith("---\n")
    (model,) = head(card).pop("model-index")  # type: ignore[misc]
    assert {key: value for key, value in head(card).items() if key != "model-index"} == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "openai-community/gpt2",
        "base_model_relation": "finetune",
        "tags": ["gpt2", "vocabulary-adaptation", "domain-adaptation", "ivr-dagster"],
    }
    assert model["name"] == "gpt2, adapted"
    text, saved = model["results"][0]["metrics"]
    assert (text["type"], text["value"], saved["type"], saved["value"]) == ("bits_per_byte", 1.2, "token_saving", 0.25)


def test_card_states_language_and_license_if_known() -> None:
    assert not {"language", "license"} & head(model_card(REPORT, SOURCE)).keys()
    found = head(model_card(REPORT, replace(SOURCE, languages=("ko", "en"), license="apache-2.0")))
    assert (found["language"], found["license"]) == (["ko", "en"], "apache-2.0")


def test_license_comes_from_a_valid_card_of_the_base_model(tmp_path: Path) -> None:
    assert license_of(tmp_path) == ""
    cards = {"---\nlicense: mit\n---\n# A model": "mit", "---\nlicense: [a\n---\n": "", "no front matter": "", "": ""}
    for card, expected in cards.items():
        (tmp_path / "README.md").write_text(card)
        assert license_of(tmp_path) == expected, card


def test_card_of_a_local_base_model_has_no_link_to_the_hub() -> None:
    card = model_card(REPORT, replace(SOURCE, base_model="my model: v2", is_on_hub=False))
    assert "base_model" not in head(card)
    assert "huggingface.co" not in card.split("---\n", 2)[2]
    assert "`my model: v2` (a local folder), content hash `607a30d`" in card


def test_card_has_results_usage_provenance_and_license() -> None:
    card = model_card(REPORT, SOURCE)
    facts = ("4,000 of 50,257", "`c0ffee`", "5,000,000 bytes", "| `sft` | fine-tuned model, new vocabulary | 1.2000 |")
    assert [fact for fact in (*facts, "commit `607a30d`", "| merge_scope | ` within ` |") if fact not in card] == []
    assert "| training text |" not in model_card(REPORT, replace(SOURCE, train_bytes=None))
