"""One module per experiment of the paper: a model and options in, the content of a result file out."""
