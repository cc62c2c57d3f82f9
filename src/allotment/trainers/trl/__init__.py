"""``allotment train trl``: TRL's trainers from the command line, into a run directory."""
