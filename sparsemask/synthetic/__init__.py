"""Generated data, the same every time: what tasks work on where a user names none."""
