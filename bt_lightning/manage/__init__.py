"""Looking after checkpoints: find, list, compare, fetch, protect and delete them."""
