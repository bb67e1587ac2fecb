"""One module per step of the way of the data; tasks and the command line call the same functions."""
