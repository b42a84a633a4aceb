"""What knows nothing of the subject: errors, files, progress, randomness."""
