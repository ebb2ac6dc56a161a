"""What knows no image and no network: checks of arguments, files, the machine, progress."""
