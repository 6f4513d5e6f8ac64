"""What an experiment gave: tables on disk, and a view of them for Python."""
