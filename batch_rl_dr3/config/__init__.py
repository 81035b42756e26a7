"""What every command stands on: gin files, flags, errors and progress."""
