"""Files and where they lie, checkpoints, tensors between processes; knows no other room."""
