"""Check the language of the code: names, docstrings and words. `make names` prints what is left and the shares."""
