"""Utilities that know nothing of the subject: errors, files, progress, randomness."""
