"""The corpus: from raw files to clean documents, split into train and held-out.

Reading order: `files`, `decoding`, `json_records` and `text_pieces` (raw files to documents, put together in
`documents`), `cleaning`, `splits`, `parts` (Parquet), `cleaned` (all steps together).
"""
