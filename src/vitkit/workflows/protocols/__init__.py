"""The protocols of `vitkit evaluate`, one file each: `run(job) -> Findings`."""
