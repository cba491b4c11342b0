"""The pages: `draw` of a module draws one, from the reader's choice and the model (both None while the model loads).

The parts of a page that is longer begin with its name: `…_methods` says what its methods are and what they show.
"""
