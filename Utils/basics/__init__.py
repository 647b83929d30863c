"""What everything stands on: refusals, files, configs, processes."""
