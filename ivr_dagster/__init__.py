"""ivr_dagster: a pretrained causal language model onto a better vocabulary of the same size.

A map, in reading order. The work itself, without Dagster, is in `core`, and follows a line of text on its way:

- `core.corpus`: raw files to documents, cleaned and split into train and held-out.
- `core.tokens`: the byte-level alphabet, pre-tokens and their counts, id sequences.
- `core.tokenizer`: the base BPE as data, its distillation into a Unigram, how far the two agree.
- `core.vocabulary`: which strings ask for an id, which tokens give theirs up, the rules, the remapped tokenizer.
- `core.embedding`: rows out of the model, in their new order, new ones initialized and calibrated, and back.
- `core.training`: packed blocks, training settings, fine-tuning that can be stopped and gone on with, a search for
  better settings.
- `core.evaluation`: bits per byte with their intervals, new and kept tokens, speed, the report, the model card.
- `core.shard_cache`, `core.file_hashes`: what is kept of each shard of the corpus and of each file, so that only what
  changed is worked on again.
- `core.handles`: artifacts that are folders; `core.model_files`: whether one holds a model that can be adapted.
- `core.atomic`, `core.manifest`, `core.locks`, `core.presence`: what is written is whole, is told from what is not, and
  has one writer at a time.
- `core.content_hash`, `core.errors`, `core.faults`, `core.yaml_files`, `core.regular_files`: what all stems need.

Around it, from the ground up:

- `engines`: where shards are worked on, the cores of this machine or a Ray cluster.
- `artifact_paths`: where every artifact lies.
- `settings`: every key with its default, and where values come from. `stages`: which stage makes which assets.
- `sample`: the embedded default, a small model and a corpus that every Python carries.
- `processes`: several of them that train as one.
- `io_managers`, `resources`, `progress`: how assets are kept, what they share, how they tell how far they are.
- `assets`: one thin module a stem. `asset_checks`: what must hold, beside the assets it is about.
- `sources`: what everything starts from, and noticing that it changed. `staleness`: what is stale, and why.
  `dead_runs`: runs whose process is gone.
- `executor`: a run waits until nobody else works on its artifacts.
- `automation`, `alerts`: jobs, schedule, sensors. `definitions`: all of it as the one object that Dagster loads.
- `materialize`: the same assets driven without the UI. `experiments`: folders of them beside each other.
- `terminal`, `ui`: what a person sees. `cli`: `ivr`.
"""
