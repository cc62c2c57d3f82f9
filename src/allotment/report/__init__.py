"""From run directories to one self-contained HTML page."""
