"""What runs leave behind: their folders, the models in them, and their values in short."""
