from dataclasses import replace
from pathlib import Path

import yaml

from ivr_dagster.core.evaluation.figures import EvaluationReport, Variant
from ivr_dagster.core.evaluation.model_card import MARK, Provenance, model_card, write_model_card

REPORT = EvaluationReport(
    variants={name: Variant(name, bpb, 4.0, 25, 100) for name, bpb in (("base", 1.5), ("sft", 1.2))},
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
    on_hub=True,
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


def test_the_head_is_what_the_hub_reads() -> None:
    card = model_card(REPORT, SOURCE)
    assert card.startswith("---\n")
    assert head(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "openai-community/gpt2",
        "base_model_relation": "finetune",
        "tags": ["gpt2", "vocabulary-adaptation", "domain-adaptation", "ivr-dagster"],
    }


def test_a_base_model_in_a_folder_is_no_link_to_the_hub() -> None:
    card = model_card(REPORT, replace(SOURCE, base_model="my model: v2", on_hub=False))
    assert "base_model" not in head(card)
    assert "huggingface.co" not in card.split("---\n", 2)[2]
    assert "`my model: v2` (a folder), content `607a30d`" in card


def test_the_card_says_where_the_model_comes_from_how_it_does_and_under_which_licence() -> None:
    card = model_card(REPORT, SOURCE)
    for told in (
        "# gpt2, adapted",
        "commit `607a30d`",
        "4,000 of 50,257",
        "`c0ffee`",
        "1,234 to learn from, 56 held out",
        "5,000,000 bytes",
        "**20.0 % better** than the base model",
        "| `sft` | fine-tuned model, new vocabulary | 1.2000 |",
        "AutoModelForCausalLM.from_pretrained",
        "| merge_scope | ` within ` |",
        "stay under the base model's licence",
    ):
        assert told in card, told
    assert "text trained on" not in model_card(REPORT, replace(SOURCE, train_bytes=None))


def test_our_card_is_replaced_and_a_persons_stays(tmp_path: Path) -> None:
    card = model_card(REPORT, SOURCE)
    assert write_model_card(tmp_path, "older\n" + MARK)
    assert write_model_card(tmp_path, card)
    file = tmp_path / "README.md"
    assert file.read_text(encoding="utf-8") == card
    file.write_text(card.replace(MARK, "Mine."), encoding="utf-8")
    assert not write_model_card(tmp_path, card)
    assert "Mine." in file.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
