"""Memory: the peak of a process that loads, answers and goes on answering; the processes of cold start serve too."""

SAMPLES = 3
