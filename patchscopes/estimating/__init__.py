"""What a run will take, estimated from a small part of it: the part is computed, the rest is drawn out from it.

An estimate is the run itself, of which little is done. While one is made (`ESTIMATE` holds it), three places do only
some of what they are asked for and answer with that in the place of the rest:

- `experiments.chunks.measure_parts`: of each step a few members of a few parts (`steps`);
- `engine.batching.run_in_batches`: of a long call some rows (`rows`);
- `learned.files.learn_once`: a few texts, examples or steps, and what is learned is not kept (`learning`).

Each adds what it left out to the counts (`tally`), so that rows, tokens, FLOP and seconds are those of the whole run.
"""
