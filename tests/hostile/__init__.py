"""Files that mean harm, built by code; `corpus.CASES` is the table of all of them."""
