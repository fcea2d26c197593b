"""Option files: the table of all options, reading, checking, completing. Import from the modules of this package."""
