"""The command line. No command here needs torch."""
