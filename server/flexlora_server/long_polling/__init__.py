"""Long polls: idle agents and event streams wait here without a thread or a database connection each."""
