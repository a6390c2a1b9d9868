"""What several tests share: small models, small data sets, small runs, child processes and stored reference outputs."""
