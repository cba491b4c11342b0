"""The pages: each module has one function, `draw`, from the reader's choice and the model (None while it loads)."""
