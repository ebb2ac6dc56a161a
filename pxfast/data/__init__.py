"""Images: the one door for them, files, and data sets."""
