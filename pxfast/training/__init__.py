"""What every training shares: settings of a run, checkpoints, processes, notes of where weights come from."""
