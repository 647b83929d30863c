"""What the user names: a folder, a single file, a change of a base.  Each is a source that yields text towers by name."""
