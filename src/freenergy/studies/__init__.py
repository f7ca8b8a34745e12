"""The questions of the project, each a function from data to a result."""
