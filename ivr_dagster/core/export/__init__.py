"""Writing the fine-tuned model in the formats of inference engines, each file checked by the format's own reader."""
