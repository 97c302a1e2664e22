"""The replay inside other libraries and their agents. Nothing else in `fastrl` imports these."""
