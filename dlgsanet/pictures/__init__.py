"""Picture files: formats, reading, writing."""
