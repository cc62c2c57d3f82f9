"""Ask/tell planners, one file per system."""
