"""Fine-tuning: token sequences packed into blocks, the settings of a run, the run itself."""
