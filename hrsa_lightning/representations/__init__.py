"""Tags of version 0.1, until the report reads measurements."""
