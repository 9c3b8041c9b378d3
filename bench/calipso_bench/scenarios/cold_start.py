"""Cold start: from the start of a process to its first answer, a new process for each sample."""

SAMPLES = 5
