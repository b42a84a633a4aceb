"""Files of every kind that this package reads, damaged by chance: what a reader must never do is counted.

`damage` spoils files, `subjects` says which files there are and what reads them, `guard` watches one reading, and
`python -m fuzzing --inputs 10000 --seed 1` (`make fuzz`) puts them together. The same seed and
number give the same input.
"""
