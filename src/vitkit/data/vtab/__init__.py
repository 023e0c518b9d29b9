"""The Visual Task Adaptation Benchmark with 1,000 images a task (VTAB-1k): the 19 tasks, and
readers of their data as each publisher distributes them."""
