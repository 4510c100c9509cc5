"""Search, train, distil, evaluate, export, report: the command line."""
