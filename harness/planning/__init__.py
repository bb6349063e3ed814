"""How many seeds: what a sweep needs at present (`standing`, `budget`, `words`), and what it would
take before anything runs (`power`). Reads run folders, writes nothing."""
