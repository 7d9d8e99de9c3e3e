"""The corpus: from the user's raw files to clean documents, split into train and held-out.

In reading order: `documents` (raw files to documents), `text_pieces` (a long plain text to documents),
`cleaning` (a document's characters), `splits` (its id and its side), `cleaned` (all of it, written as Parquet).
"""
